"""COMMIT: conditional masked modeling by interior tokens (MAGVIT, section 3.2), and the other ways of conditioning it
is compared with.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from jax import lax
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


SCHEDULES = {f.__name__: f for f in (cosine, uniform, power, logarithmic, exponential)}


def find_schedule(name: str) -> Callable:
    """A schedule by name, "power" with its exponent: "cosine", "uniform", "power3", "power0.5". ValueError lists them."""
    if name in SCHEDULES:
        return SCHEDULES[name]
    if match := re.fullmatch(r"power(\d+\.?\d*)", name):
        if exponent := float(match[1]):
            return partial(power, exponent=exponent)
    raise ValueError(f'there is no mask schedule "{name}"; choose of {", ".join(SCHEDULES)}, power<exponent>')


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
    prefix: the condition tokens stand before the grid, closed by [SEP], and the grid itself is not conditioned.
    """

    refine: bool = False
    fixed: str | None = None
    prefix: bool = False

    def __post_init__(self):
        if self.fixed not in (None, "target", "condition"):
            raise ValueError(f'fixed={self.fixed!r} is none of None, "target", "condition"')
        if self.refine + bool(self.fixed) + self.prefix > 1:
            raise ValueError(f"{self}: choose one way of conditioning")


COMMIT = Conditioning(refine=True)
UNCONDITIONED = Conditioning()
FIXED_TARGET = Conditioning(fixed="target")
FIXED_CONDITION = Conditioning(fixed="condition")
PREFIX = Conditioning(prefix=True)


@dataclasses.dataclass(frozen=True)
class Masked:
    """inputs: tokens the model sees; uncond: the same without the condition, for guidance; masked: the positions that
    were hidden; targets, weights: of the loss. All (b t' h' w')."""

    inputs: Int[Array, "b th hh wh"]
    uncond: Int[Array, "b th hh wh"]
    masked: Bool[Array, "b th hh wh"]
    targets: Int[Array, "b th hh wh"]


def lowest(scores: Float[Array, "b n"], count: Int[Array, "b"]) -> Bool[Array, "b n"]:
    """The `count` lowest scores of each row; ties at the cut-off are all included.

    Only scores that were sorted are compared: XLA may compute the given ones twice, with other last bits, for the sort and for a comparison, and the
    token at the cut-off is then hidden for one of those who read this and shown to another.
    """
    places = jnp.broadcast_to(jnp.arange(scores.shape[-1]), scores.shape)
    ordered, places = lax.sort((scores, places), num_keys=1)
    among = ordered <= jnp.take_along_axis(ordered, count[:, None] - 1, axis=-1)
    return lax.sort((places, among), num_keys=1)[1]


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


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """Of the three terms of COMMIT's loss (eq. 4): L_mask on [MASK], L_refine on condition tokens shown in the place of
    masked ones, L_recons on shown target tokens. Table 5 of the paper: (1, 0, 0), (1, 0, 1) and (1, 1, 1).
    """

    mask: float = 1.0
    refine: float = 1.0
    recons: float = 1.0

    def __post_init__(self):
        if min(self.mask, self.refine, self.recons) < 0 or not self.mask + self.refine + self.recons:
            raise ValueError(f"{self}: give weights of at least 0, and not 0 alone")


def loss_weights(
    masked: Bool[Array, "b th hh wh"],
    cond_mask: Bool[Array, "b th hh wh"],
    conditioning: Conditioning = COMMIT,
    weights: LossWeights = LossWeights(),
) -> Float[Array, "b th hh wh"]:
    """The weight of each token's loss; 0 on fixed tokens. Without condition tokens there is nothing to refine."""
    hidden = jnp.where(cond_mask & conditioning.refine, weights.refine, weights.mask)
    found = jnp.where(masked, hidden, weights.recons)
    return jnp.where(cond_mask, 0.0, found) if conditioning.fixed else found
