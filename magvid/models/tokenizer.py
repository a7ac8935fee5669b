"""A video tokenizer: encoder, quantizer, decoder."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from magvid.types import Quantized


class Tokenizer(nn.Module):
    """Video (b t h w 3) in [0, 1] <-> ids (b t' h' w').

    Use it with `tokenizer.apply({"params": params}, video, method="encode_ids")` and so on. Value range: `vrange`; zero
    padding means black there, so the range cannot be changed after training.
    """

    encoder: nn.Module
    quantizer: nn.Module
    decoder: nn.Module

    vrange = (0.0, 1.0)

    def __call__(
        self, video: Float[Array, "b t h w 3"], *, train: bool = False
    ) -> tuple[Float[Array, "b t2 h2 w2 3"], Quantized]:
        """Reconstruction (unclipped; sizes that the grid does not divide are rounded up) and what the quantizer says."""
        quantized = self.quantizer(self.encode(video), train=train)
        return self.decode(quantized.codes), quantized

    def encode(self, video: Float[Array, "b t h w 3"]) -> Float[Array, "b th hh wh d"]:
        return self.encoder(video)

    def encode_ids(self, video: Float[Array, "b t h w 3"]) -> Int[Array, "b th hh wh"]:
        return self.quantizer(self.encoder(video)).ids

    def decode(self, z: Float[Array, "b th hh wh d"]) -> Float[Array, "b t h w 3"]:
        return self.decoder(z)

    def ids_to_video(self, ids: Int[Array, "b th hh wh"]) -> Float[Array, "b t h w 3"]:
        """Decoded and clipped to [0, 1]: for display and evaluation."""
        return jnp.clip(self.decoder(self.quantizer.ids_to_codes(ids)), *self.vrange)
