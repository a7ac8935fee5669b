"""COMMIT: conditional masked modeling by interior tokens (MAGVIT, section 3.2), and the other ways of conditioning it
is compared with.
"""

import dataclasses
import math
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# --- mask schedules: ratio r in [0, 1] -> share of tokens that are masked, gamma(0) = 1, gamma(1) = 0


def cosine(r: Array, total: int) -> Array:
    return jnp.cos(math.pi / 2 * r)


def uniform(r: Array, total: int) -> Array:
    return 1 - r


def power(r: Array, total: int, exponent: float = 2.0) -> Array:
    return 1 - r**exponent


def logarithmic(r: Array, total: int) -> Array:
    return -jnp.log2(r) / math.log2(total)


def exponential(r: Array, total: int) -> Array:
    return 1 - jnp.exp2(-math.log2(total) * (1 - r))


def polynomial(r: Array, total: int, coefficients: tuple[float, ...] = (-1.0, 0.0, 1.0)) -> Array:
    """Highest power first, e.g. (-1, 0, 1) is 1 - r^2."""
    return jnp.polyval(jnp.asarray(coefficients), r)


def mask_ratio(schedule: Callable, r: Array, total: int) -> Array:
    """The schedule's share of masked tokens, clipped to [1e-6, 1]; `total` is the number of tokens of the grid."""
    return jnp.clip(schedule(r, total), 1e-6, 1.0)


@dataclasses.dataclass(frozen=True)
class Conditioning:
    """How condition tokens enter the masked sequence.

    refine: a masked position of the condition region shows the condition token instead of [MASK] (COMMIT: m(z | z~) =
    z~ there).
    fixed: positions of the condition region are never masked nor trained; they hold the "target" tokens, or the
    "condition" tokens, which then also are the targets ("latent masking" of MaskGIT).
    """

    refine: bool = False
    fixed: str | None = None

    def __post_init__(self):
        if self.fixed not in (None, "target", "condition"):
            raise ValueError(f'fixed={self.fixed!r} is none of None, "target", "condition"')


COMMIT = Conditioning(refine=True)
UNCONDITIONED = Conditioning()
FIXED_TARGET = Conditioning(fixed="target")
FIXED_CONDITION = Conditioning(fixed="condition")


@dataclasses.dataclass(frozen=True)
class Masked:
    """inputs: tokens the model sees; uncond: the same without the condition, for guidance; masked: the positions that
    were hidden; targets, weights: of the loss. All (b t' h' w')."""

    inputs: Int[Array, "b th hh wh"]
    uncond: Int[Array, "b th hh wh"]
    masked: Bool[Array, "b th hh wh"]
    targets: Int[Array, "b th hh wh"]


def lowest(scores: Float[Array, "b n"], count: Int[Array, "b"]) -> Bool[Array, "b n"]:
    """The `count` lowest scores of each row; ties at the cut-off are all included."""
    cutoff = jnp.take_along_axis(jnp.sort(scores, axis=-1), count[:, None] - 1, axis=-1)
    return scores <= cutoff


def masked_count(gamma: Float[Array, "b"], maskable: Int[Array, "b"] | int, limit=None) -> Int[Array, "b"]:
    """floor(maskable * gamma), at least 1 and at most `limit`."""
    count = jnp.floor(maskable * gamma).astype(jnp.int32)
    return jnp.maximum(count if limit is None else jnp.minimum(count, limit), 1)


def mask_tokens(
    ids: Int[Array, "b th hh wh"],
    cond_ids: Int[Array, "b th hh wh"],
    cond_mask: Bool[Array, "b th hh wh"],
    gamma: Float[Array, "b"],
    scores: Float[Array, "b th hh wh"],
    mask_id: int,
    conditioning: Conditioning = COMMIT,
    limit: Int[Array, "b"] | None = None,
) -> Masked:
    """Hide the tokens of lowest score: a share `gamma` (0, 1] of those that may be hidden, at least one.

    cond_mask: the condition region on the latent grid (all False: no condition). In training, scores are uniform noise;
    in decoding, the confidences of the sampled tokens (paper, algorithm 1, and eq. 3: m(z_i | z~_i) = z~_i if masked
    and not only-padding, [MASK] if masked and only-padding, z_i else).
    """
    b = ids.shape[0]
    maskable = ids[0].size
    if conditioning.fixed:
        scores = jnp.where(cond_mask, jnp.inf, scores)
        maskable = jnp.sum(~cond_mask, axis=(1, 2, 3))
    if conditioning.fixed == "condition":
        ids = jnp.where(cond_mask, cond_ids, ids)
    masked = lowest(scores.reshape(b, -1), masked_count(gamma, maskable, limit)).reshape(ids.shape)
    uncond = jnp.where(masked, mask_id, ids)
    inputs = jnp.where(masked & cond_mask, cond_ids, uncond) if conditioning.refine else uncond
    return Masked(inputs, uncond, masked, ids)


def loss_weights(
    masked: Bool[Array, "b th hh wh"], cond_mask, conditioning: Conditioning = COMMIT, recons: bool = True
) -> Array:
    """Weight 1 on masked tokens (L_mask and L_refine) and, with `recons`, on shown target tokens too (L_recons); 0 on
    fixed ones.
    """
    weights = jnp.ones(masked.shape) if recons else masked.astype(jnp.float32)
    return jnp.where(cond_mask, 0.0, weights) if conditioning.fixed else weights
