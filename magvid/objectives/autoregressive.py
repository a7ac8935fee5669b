"""Training and sampling of a causal transformer on the same tokens: the baseline of MAGVIT's table 6."""

import dataclasses
from functools import partial

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from magvid.losses import token_cross_entropy
from magvid.masked.autoregressive import generate
from magvid.masked.commit import UNCONDITIONED, Conditioning
from magvid.objectives.tokens import TokenObjective
from magvid.types import Groups


@dataclasses.dataclass(frozen=True, kw_only=True)
class Autoregressive(TokenObjective):
    """batch: that of `TokenObjective`. A sequence is [BOS], the prefix of `TokenObjective`, and the grid in raster order.

    The loss is the mean cross-entropy of every token after BOS over the whole vocabulary (official `LMGVT`). BOS is the
    row of [MASK], which no sequence holds otherwise. Conditions other than the class come as `PREFIX`, of one task.
    `decoding`: `sampler` of `masked.autoregressive.generate`.
    """

    conditioning: Conditioning = UNCONDITIONED
    smoothing: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if self.conditioning.refine or self.conditioning.fixed:
            raise ValueError(f"a causal transformer sees conditions before the grid: {self.conditioning} needs all of it")
        if not self.conditioning.prefix and not all(self.blind):
            raise ValueError(f"tasks {', '.join(map(str, self.tasks))} give pixels: use Conditioning(prefix=True)")
        if unknown := set(self.decoding) - {"sampler"}:
            raise ValueError(f"decoding token by token has a sampler alone, got {', '.join(sorted(unknown))}")

    def loss(self, params: Groups, extra: dict, batch: dict, key: Array | None, step: Array | int, train: bool):
        ids, cond_ids, _ = self.tokens(params, batch)
        sequence = jnp.concatenate([self.prefix(batch, cond_ids), ids.reshape(len(ids), -1)], axis=1)
        inputs = jnp.concatenate([self.begin(len(ids)), sequence[:, :-1]], axis=1)
        logits = self.transformer.apply(
            {"params": params["transformer"]}, inputs, train=train, rngs={"dropout": key} if train else None
        )
        per_clip = token_cross_entropy(logits, sequence, self.smoothing).mean(axis=1)
        grid = ids[0].size
        right = jnp.mean(jnp.argmax(logits[:, -grid:], -1) == sequence[:, -grid:], axis=1)
        loss = self.mean(per_clip, batch)
        return {"transformer": loss}, ({"loss": loss, "accuracy": self.mean(right, batch)}, extra)

    def sample_ids(self, params: Groups, batch: dict, key: Array, **decoding) -> tuple[Int[Array, "b th hh wh"], None]:
        """Ids (b t' h' w'), and no record: every token is final."""
        b, latent = len(batch["task"]), self.latent_shape(self.video_shape(batch))
        cond_ids = jnp.zeros((b, *latent), jnp.int32)
        if self.conditioning.prefix:
            cond_ids, _ = self.condition(params, batch)
        prefix = jnp.concatenate([self.begin(b), self.prefix(batch, cond_ids)], axis=1)
        apply = partial(self.transformer.apply, {"params": params["transformer"]})
        ids = generate(
            lambda ids, start, memory: apply(ids, start=start, memory=memory),
            self.transformer.init_memory(b),
            prefix,
            int(np.prod(latent)),
            key,
            codebook=self.vocab.codebook,
            **{**self.decoding, **decoding},
        )
        return ids.reshape(b, *latent), None

    def begin(self, b: int) -> Int[Array, "b 1"]:
        return jnp.full((b, 1), self.vocab.mask, jnp.int32)
