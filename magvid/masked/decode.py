"""Parallel decoding (MAGVIT, algorithm 1): all tokens are predicted at every step, the least confident are hidden
again.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from magvid.masked.commit import COMMIT, Conditioning, cosine, mask_ratio, mask_tokens

# --- token samplers: (logits (... k), key, step) -> ids (...)


def categorical(
    logits: Float[Array, "... k"], key: Array, step: Array | int, temperature: float = 1.0
) -> Int[Array, "..."]:
    """Sample from softmax(logits / temperature), temperature > 0; below 1 likely tokens become likelier (paper: 1)."""
    if temperature <= 0:
        raise ValueError(f"sampling needs a temperature above 0, got {temperature}: `greedy` takes the likeliest token")
    return jax.random.categorical(key, logits / temperature).astype(jnp.int32)


def greedy(logits: Float[Array, "... k"], key: Array, step: Array | int) -> Int[Array, "..."]:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def top_k(logits: Float[Array, "... k"], key: Array, step: Array | int, k: int = 100) -> Int[Array, "..."]:
    """Sample among the k most likely tokens."""
    values, ids = lax.top_k(logits, k)
    choice = jax.random.categorical(key, values)
    return jnp.take_along_axis(ids, choice[..., None], axis=-1)[..., 0].astype(jnp.int32)


def nucleus(logits: Float[Array, "... k"], p: float) -> Float[Array, "... k"]:
    """-inf outside the smallest set of most likely tokens whose probability exceeds p; the most likely token always
    stays.
    """
    order = jnp.argsort(-logits, axis=-1)
    ranked = jnp.take_along_axis(logits, order, axis=-1)
    before = jnp.cumsum(jax.nn.softmax(ranked, axis=-1), axis=-1) - jax.nn.softmax(ranked, axis=-1)
    kept = jnp.where(before > p, -jnp.inf, ranked)
    return jnp.take_along_axis(kept, jnp.argsort(order, axis=-1), axis=-1)


def top_p(logits: Float[Array, "... k"], key: Array, step: Array | int, p: float = 0.9) -> Int[Array, "..."]:
    """Sample from the nucleus of probability p."""
    return categorical(nucleus(logits, p), key, step)


def gumbel(key: Array, step: Array | int, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """The noise that perturbs the confidences; a function so that a test can put recorded noise in its place."""
    return jax.random.gumbel(key, shape)


class Step(NamedTuple):
    """One step of decoding, for display: what the model saw and sampled, what was hidden again. All (b t' h' w')."""

    inputs: Int[Array, "b th hh wh"]
    sampled: Int[Array, "b th hh wh"]
    masked: Bool[Array, "b th hh wh"]


def decode(
    model: Callable[[Int[Array, "b th hh wh"], Int[Array, "b th hh wh"]], Float[Array, "b th hh wh k"]],
    cond_ids: Int[Array, "b th hh wh"],
    cond_mask: Bool[Array, "b th hh wh"],
    key: Array,
    *,
    mask_id: int,
    steps: int = 12,
    temperature: float = 4.5,
    schedule: Callable = cosine,
    conditioning: Conditioning = COMMIT,
    sampler: Callable = categorical,
    noise: Callable = gumbel,
) -> tuple[Int[Array, "b th hh wh"], Step]:
    """Ids after `steps` calls of the model, and the record of every step (leading axis `steps`).

    model(inputs, uncond_inputs) -> logits over the codebook only; it may use the second argument for classifier-free
    guidance.
    temperature: of the Gumbel noise on the confidences, annealed to 0 (paper: 4.5; 7.5 on Kinetics; 400 on BAIR). With
    COMMIT every token, the condition's too, is predicted anew; with a fixed condition those positions stay. The answer
    is the last sample, without a further pass (official code).
    """
    if steps < 1:
        raise ValueError(f"decoding needs at least 1 step, got {steps}")
    if not temperature >= 0:  # NaN fails as well
        raise ValueError(f"the temperature of decoding is at least 0, got {temperature}")
    b, total = cond_ids.shape[0], cond_ids[0].size
    start = jnp.full_like(cond_ids, mask_id)
    if conditioning.refine or conditioning.fixed:
        start = jnp.where(cond_mask, cond_ids, start)
    unknown = ~cond_mask if conditioning.fixed else jnp.ones_like(cond_mask)
    start_uncond = jnp.where(unknown, mask_id, start)

    def step(carry, k):
        inputs, uncond, unknown = carry
        sample_key, noise_key = jax.random.split(jax.random.fold_in(key, k))
        logits = model(inputs, uncond)
        sampled = jnp.where(unknown, sampler(logits, sample_key, k), inputs)
        chosen = jnp.take_along_axis(jax.nn.softmax(logits, axis=-1), sampled[..., None], axis=-1)[..., 0]
        confidence = jnp.log(jnp.where(unknown, chosen, jnp.inf))
        progress = (k + 1) / steps
        scores = confidence + temperature * (1 - progress) * noise(noise_key, k, confidence.shape)
        gamma = jnp.broadcast_to(mask_ratio(schedule, progress, total), (b,))
        limit = jnp.sum(unknown, axis=(1, 2, 3)) - 1  # every step must fix at least one token
        hidden = mask_tokens(sampled, cond_ids, cond_mask, gamma, scores, mask_id, conditioning, limit)
        return (hidden.inputs, hidden.uncond, hidden.masked), Step(inputs, sampled, hidden.masked)

    _, record = lax.scan(step, (start, start_uncond, unknown), jnp.arange(steps))
    return record.sampled[-1], record
