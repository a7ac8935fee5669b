"""Training and sampling of a masked video transformer on a frozen tokenizer (MAGVIT, stage 2)."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from magvid.losses import token_cross_entropy, weighted_mean
from magvid.masked.commit import COMMIT, Conditioning, LossWeights, cosine, loss_weights, mask_ratio, mask_tokens
from magvid.masked.decode import decode
from magvid.objectives.tokens import TokenObjective
from magvid.types import Groups


@dataclasses.dataclass(frozen=True, kw_only=True)
class Masked(TokenObjective):
    """batch: that of `TokenObjective`, and "ratio": float (b,) in [0, 1).

    `weights` are those of L_mask, L_refine and L_recons. `guidance` adds g * (conditional - unconditional) to the logits
    when sampling. `decoding` are arguments of `masked.decode.decode`.
    """

    conditioning: Conditioning = COMMIT
    schedule: Callable = cosine
    weights: LossWeights = LossWeights()
    smoothing: float = 1e-4
    guidance: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if self.guidance and not self.vocab.unconditional:
            raise ValueError(f"guidance={self.guidance} needs an UNCOND token, which {self.vocab} lacks: set it to 0")

    def loss(self, params: Groups, extra: dict, batch: dict, key: Array | None, step: Array | int, train: bool):
        """Label-smoothed cross-entropy over the codebook, weighted mean over the tokens of a clip, mean over clips."""
        score_key, dropout_key = jax.random.split(key)
        ids, cond_ids, cond_mask = self.tokens(params, batch)
        gamma = mask_ratio(self.schedule, batch["ratio"], ids[0].size)
        scores = jax.random.uniform(score_key, ids.shape)
        hidden = mask_tokens(ids, cond_ids, cond_mask, gamma, scores, self.vocab.mask, self.conditioning)
        prefix, rngs = self.prefix(batch, cond_ids), {"dropout": dropout_key}
        logits = self.logits(params, prefix, hidden.inputs, train=train, rngs=rngs)
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

        options = {**self.decoding, **decoding}
        return decode(
            model, cond_ids, cond_mask, key, mask_id=self.vocab.mask, conditioning=self.conditioning, **options
        )

    def logits(
        self, params: Groups, prefix, inputs: Int[Array, "b th hh wh"], *, train=False, rngs=None
    ) -> Float[Array, "b th hh wh k"]:
        """Logits over the codebook at the latent positions."""
        sequence = jnp.concatenate([prefix, inputs.reshape(inputs.shape[0], -1)], axis=1)
        logits = self.transformer.apply({"params": params["transformer"]}, sequence, train=train, rngs=rngs)
        return logits[:, prefix.shape[1] :, : self.vocab.codebook].reshape(*inputs.shape, -1)
