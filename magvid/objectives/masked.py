"""Training and sampling of a masked video transformer on a frozen tokenizer (MAGVIT, stage 2)."""

import dataclasses
import inspect
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from magvid.losses import token_cross_entropy, weighted_mean
from magvid.masked.commit import (
    COMMIT,
    Conditioning,
    LossWeights,
    cosine,
    find_schedule,
    loss_weights,
    mask_ratio,
    mask_tokens,
)
from magvid.masked.decode import decode
from magvid.objectives.tokens import TokenObjective
from magvid.objectives.vqgan import cut
from magvid.types import DecodingSteps, Groups

# What a config may say of decoding.
DECODING = [
    name
    for name, parameter in inspect.signature(decode).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY and name != "mask_id"
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Masked(TokenObjective):
    """batch: that of `TokenObjective`, and "ratio": float (b,) in [0, 1).

    `weights` are those of L_mask, L_refine and L_recons. `guidance` adds g * (conditional - unconditional) to the logits
    when sampling. `condition_drop` is the share of training clips whose class, task and condition tokens are hidden as
    in that unconditional pass, which guidance needs to be trained (MAGVIT: 0, and no guidance). `decoding` are arguments
    of `masked.decode.decode`, its `schedule` a function or a name; its `conditioning`, by default that of training, may
    be MaskGIT's for a model of COMMIT.
    """

    conditioning: Conditioning = COMMIT
    schedule: Callable = cosine
    weights: LossWeights = LossWeights()
    smoothing: float = 1e-4
    guidance: float = 0.0
    condition_drop: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.guidance < math.inf:
            raise ValueError(f"guidance={self.guidance}: give a weight of at least 0")
        if (self.guidance or self.condition_drop) and not self.vocab.unconditional:
            raise ValueError(
                f"guidance={self.guidance} and condition_drop={self.condition_drop} need an UNCOND token, which {self.vocab} "
                "lacks: set them to 0"
            )
        if not 0 <= self.condition_drop <= 1 or not 0 <= self.smoothing < 1:
            raise ValueError(
                f"condition_drop={self.condition_drop}, smoothing={self.smoothing}: give shares in [0, 1], of smoothing "
                "below 1"
            )
        if isinstance(schedule := self.decoding.get("schedule"), str):
            find_schedule(schedule)  # ValueError for an unknown name
        if unknown := set(self.decoding) - set(DECODING):
            raise ValueError(f"decoding has no {', '.join(sorted(unknown))}: it takes {', '.join(DECODING)}")

    def loss(self, params: Groups, extra: dict, batch: dict, key: Array | None, step: Array | int, train: bool):
        """Label-smoothed cross-entropy over the codebook, weighted mean over the tokens of a clip, mean over clips."""
        score_key, dropout_key = jax.random.split(key)
        ids, cond_ids, cond_mask = self.tokens(params, batch)
        gamma = mask_ratio(self.schedule, batch["ratio"], ids[0].size)
        scores = jax.random.uniform(score_key, ids.shape)
        hidden = mask_tokens(ids, cond_ids, cond_mask, gamma, scores, self.vocab.mask, self.conditioning)
        prefix, inputs = self.prefix(batch, cond_ids), hidden.inputs
        if train and self.condition_drop:
            drop = jax.random.bernoulli(jax.random.fold_in(key, 2), self.condition_drop, (len(ids), 1))
            prefix = jnp.where(drop, self.prefix(batch, cond_ids, conditional=False), prefix)
            inputs = jnp.where(drop[..., None, None], hidden.uncond, inputs)
            if self.conditioning.refine:  # a fixed condition stays in the unconditional pass
                cond_mask = cond_mask & ~drop[..., None, None]
        logits = self.logits(params, prefix, inputs, train=train, rngs={"dropout": dropout_key})
        losses = token_cross_entropy(logits, hidden.targets, self.smoothing)
        flat = lambda a: a.reshape(a.shape[0], -1)
        weights = flat(loss_weights(hidden.masked, cond_mask, self.conditioning, self.weights))
        per_clip = weighted_mean(flat(losses), weights)
        loss = self.mean(per_clip, batch)
        counted = hidden.masked * self.valid(batch)[:, None, None, None]
        right = jnp.sum((jnp.argmax(logits, -1) == hidden.targets) * counted)
        metrics = {"loss": loss, "masked_accuracy": right / jnp.maximum(jnp.sum(counted), 1)}
        return {"transformer": loss}, (metrics, extra)

    def sample_ids(self, params: Groups, batch: dict, key: Array, **decoding):
        """Ids (b t' h' w') and the record of the decoding steps."""
        cond_ids, cond_mask = self.condition(params, batch)
        prefix = self.prefix(batch, cond_ids)

        def model(inputs, uncond):
            logits = self.logits(params, prefix, inputs)
            if not self.guidance:
                return logits
            uncond_prefix = self.prefix(batch, cond_ids, conditional=False)
            return logits + self.guidance * (logits - self.logits(params, uncond_prefix, uncond))

        options = {"conditioning": self.conditioning, **self.decoding, **decoding}
        if isinstance(options.get("schedule"), str):
            options["schedule"] = find_schedule(options["schedule"])
        return decode(model, cond_ids, cond_mask, key, mask_id=self.vocab.mask, **options)

    def with_decoding(self, **options) -> "Masked":
        """Also with another `guidance`."""
        guidance = options.pop("guidance", self.guidance)
        return dataclasses.replace(super().with_decoding(**options), guidance=guidance)

    def decoding_steps(self, params: Groups, batch: dict, key: Array) -> DecodingSteps:
        """How `sample` with the same arguments arrives at its video."""
        _, record = self.sample_ids(params, batch, key)
        _, cond_mask = self.condition(params, batch)
        conditioning = self.decoding.get("conditioning", self.conditioning)
        first = ~cond_mask if conditioning.fixed else jnp.ones_like(cond_mask)
        unknown = jnp.concatenate([first[None], record.masked[:-1]])
        masked = record.inputs == self.vocab.mask
        condition = cond_mask & (conditioning.refine & unknown | bool(conditioning.fixed))
        # Under [MASK] the step's own samples are decoded: any other tokens would bleed into the cells beside them.
        seen = jnp.where(masked, record.sampled, record.inputs)
        video = lambda ids: cut(self.decode(params, ids), batch["video"])
        steps = DecodingSteps(
            seen=lax.map(video, seen),
            sampled=lax.map(video, record.sampled),
            unknown=unknown,
            masked=masked,
            condition=condition,
            hidden=record.masked.at[-1].set(False),  # the last sample is the answer
        )
        return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), steps)

    def logits(
        self, params: Groups, prefix, inputs: Int[Array, "b th hh wh"], *, train=False, rngs=None
    ) -> Float[Array, "b th hh wh k"]:
        """Logits over the codebook at the latent positions."""
        sequence = jnp.concatenate([prefix, inputs.reshape(inputs.shape[0], -1)], axis=1)
        logits = self.transformer.apply({"params": params["transformer"]}, sequence, train=train, rngs=rngs)
        return logits[:, prefix.shape[1] :, : self.vocab.codebook].reshape(*inputs.shape, -1)
