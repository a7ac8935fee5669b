"""What a denoiser is asked for beside its condition: functions from denoisers to denoisers, which compose.

`combine`, `classifier_free` and `chain` turn a denoiser (x, level, condition) -> x0 and its conditions into (x, level) ->
x0; the others wrap such a one.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from magvid.diffusion.predictions import Denoiser
from magvid.diffusion.samplers import Guided
from magvid.diffusion.schedules import Level, corrupt

Weight = float | Array  # one, or (t,): one per frame


def ramp(first: float, last: float, frames: int) -> Float[Array, "t"]:
    """A weight per frame, linear: SVD guides from 1 at the first frame to 3 at the last."""
    return jnp.linspace(first, last, frames)


def combine(denoise: Denoiser, conditions: Sequence[Any], factors: Sequence[Weight]) -> Guided:
    """sum_i factor_i denoise(x, level, condition_i), by one call with all branches along the batch.

    The branches of a clip stand side by side, so that a batch that is spread over devices stays where it is. What has the factor 0
    is not asked for. ValueError where the conditions differ in what they hold.
    """
    if len(conditions) != len(factors):
        raise ValueError(f"{len(conditions)} conditions have {len(factors)} factors: give one for each")
    counts = [i for i, f in enumerate(factors) if not isinstance(f, int | float) or f != 0]
    conditions, factors = [conditions[i] for i in counts], [factors[i] for i in counts]
    k = len(conditions)
    stacked = _side_by_side(conditions)

    def guided(x: Float[Array, "b t h w c"], s: Level) -> Float[Array, "b t h w c"]:
        s = Level(*(jnp.repeat(a, k, axis=0) if jnp.ndim(a) else a for a in s))
        branches = denoise(jnp.repeat(x, k, axis=0), s, stacked).reshape(len(x), k, *x.shape[1:])
        return sum(_per_frame(f) * branches[:, i] for i, f in enumerate(factors))

    return guided


def classifier_free(
    denoise: Denoiser, condition: Any, nulls: Sequence[Any], weights: Sequence[Weight]
) -> Guided:
    """x0(c) + sum_i (w_i - 1) (x0(c) - x0(null_i)): away from each null (Ho & Salimans, 2022, with w = 1 + their w).

    With one null, weight 1 is the conditional denoiser and weight 0 that of the null.
    """
    _one_each(nulls, weights)
    return combine(denoise, [condition, *nulls], [1 + sum(w - 1 for w in weights), *(1 - w for w in weights)])


def chain(denoise: Denoiser, conditions: Sequence[Any], weights: Sequence[Weight]) -> Guided:
    """x0(c_0) + sum_i w_i (x0(c_i) - x0(c_(i-1))), i = 1 ...: conditions come one after another, each with its weight.

    (null, c) is classifier-free guidance, (null, image, image and text) with weights (s_image, s_text) the dual guidance of
    InstructPix2Pix and AID. All weights 1: the last condition alone.
    """
    _one_each(conditions[1:], weights)
    w = [1.0, *weights, 0.0]
    return combine(denoise, conditions, [a - b for a, b in zip(w[:-1], w[1:], strict=True)])


def known_parts(
    denoise: Guided,
    clean: Float[Array, "b t h w c"],
    known: Bool[Array, "b t *hw"],
    noise: Float[Array, "b t h w c"] | None = None,
) -> Guided:
    """`denoise` told some frames (b t), or cells of them (b t h w): it sees them clean in place, or with `noise` noised to the
    level, and gives them as they are. So a sampler that ends at sigma 0 returns them unchanged.
    """
    here = jnp.reshape(known, (*known.shape, *[1] * (clean.ndim - known.ndim)))

    def told(x: Float[Array, "b t h w c"], s: Level) -> Float[Array, "b t h w c"]:
        seen = clean if noise is None else corrupt(clean, noise, s)
        return jnp.where(here, clean, denoise(jnp.where(here, seen, x), s))

    return told


def clip(denoise: Guided, low: float = -1.0, high: float = 1.0) -> Guided:
    """x0 within [low, high]."""
    return lambda x, s: jnp.clip(denoise(x, s), low, high)


def threshold(denoise: Guided, ratio: float = 0.995, most: float = 1.0) -> Guided:
    """Dynamic thresholding (Saharia et al., 2022): x0 is clipped at the `ratio` quantile of its size, clip by clip, and
    scaled to [-1, 1]; that quantile counts as at least 1 and at most `most`.
    """

    def limited(x: Float[Array, "b ..."], s: Level) -> Float[Array, "b ..."]:
        x0 = denoise(x, s)
        size = jnp.quantile(jnp.abs(x0).reshape(len(x0), -1), ratio, axis=1)
        size = jnp.clip(size, 1.0, max(most, 1.0)).reshape(-1, *(1,) * (x0.ndim - 1))
        return jnp.clip(x0, -size, size) / size

    return limited


def _one_each(conditions: Sequence[Any], weights: Sequence[Weight]) -> None:
    if len(conditions) != len(weights):
        raise ValueError(f"{len(weights)} weights guide {len(conditions)} differences of conditions: give one for each")


def _per_frame(weight: Weight) -> Weight:
    return weight[:, None, None, None] if jnp.ndim(weight) else weight


def _side_by_side(conditions: Sequence[Any]) -> Any:
    """Leaves (b ...) of all conditions as (b k ...), flat."""
    shapes = [{jax.tree_util.keystr(p): x.shape for p, x in jax.tree_util.tree_leaves_with_path(c)} for c in conditions]
    for other in shapes[1:]:
        if odd := sorted(n for n in {**shapes[0], **other} if shapes[0].get(n) != other.get(n)):
            raise ValueError(
                f"branches of guidance differ in {odd[0]}: {shapes[0].get(odd[0], 'absent')} and "
                f"{other.get(odd[0], 'absent')}; hide a condition by its null, and do not leave it out"
            )
    return jax.tree.map(lambda *xs: jnp.stack(xs, axis=1).reshape(-1, *xs[0].shape[1:]), *conditions)
