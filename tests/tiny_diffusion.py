"""Stand-ins for the networks of a diffusion model: each obeys the contract of the real one, and runs in no time."""

import zlib
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from helpers import flatten, nest
from magvid.models.vae import Posterior

# LLVM takes seconds to optimise each shape's random numbers
FAST = {"xla_backend_optimization_level": 1}


class Encoded(NamedTuple):
    tokens: Array
    embedding: Array | None


class Text(nn.Module):
    """ids (b n) -> tokens (b n c)."""

    width: int = 3

    @nn.compact
    def __call__(self, ids):
        return Encoded(nn.Embed(11, self.width)(ids), None)


class Vision(nn.Module):
    """Images (b h w 3) -> one embedding and h tokens."""

    @nn.compact
    def __call__(self, images):
        tokens = nn.Dense(4, name="rows")(images.mean(2))
        return Encoded(tokens, nn.Dense(3, name="projection")(tokens.mean(1)))


def prepare(images):
    return 2 * images - 1


class VAE(nn.Module):
    """Halves height and width; latents of 2 channels."""

    scaling: float = 0.5
    factor = 2
    gaussian = Posterior

    def setup(self):
        self.enter, self.exit = nn.Dense(4), nn.Dense(12)

    def __call__(self, video, key=None):
        posterior = self.encode(video)
        return self.decode(posterior.mode() if key is None else posterior.sample(key)), posterior

    def encode(self, video):
        b, t, h, w, c = video.shape
        cells = video.reshape(b, t, h // 2, 2, w // 2, 2, c).mean((3, 5))
        mean, logvar = jnp.split(self.enter(cells), 2, axis=-1)
        return Posterior(mean, logvar - 4)

    def decode(self, z):
        b, t, h, w, _ = z.shape
        return jnp.moveaxis(self.exit(z).reshape(b, t, h, w, 2, 2, 3), 4, 3).reshape(b, t, 2 * h, 2 * w, 3)


class Network(nn.Module):
    """Reads x, the time and whatever it is told."""

    out: int = 2

    @nn.compact
    def __call__(self, x, time, condition):
        x = x if condition.concat is None else jnp.concatenate([x, condition.concat], axis=-1)
        y = nn.Dense(8, name="enter")(x) + nn.Dense(8, name="time")(time[:, None] / 100)[:, None, None, None]
        for name, tokens in sorted(condition.tokens.items()):
            y += nn.Dense(8, name=name)(tokens.mean((1, 2)))[:, None, None, None]
        for name, scalar in sorted(condition.scalars.items()):
            y += nn.Dense(8, name=name)(scalar[:, None] / 100)[:, None, None, None]
        y = nn.Conv(8, (3, 3, 3), name="mix")(jnp.tanh(y))
        return nn.Dense(self.out, name="exit")(jnp.tanh(y))


def batch(b: int = 2, frames: int = 3, h: int = 4, w: int = 6, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "video": rng.integers(0, 256, (b, frames, h, w, 3)).astype(np.uint8),
        "text_ids": rng.integers(1, 11, (b, 5)).astype(np.int32),
        "fps": np.arange(5.0, 5 + b, dtype=np.float32),
    }


def fill(objective, batch: dict) -> dict:
    """Parameters of an objective's shapes, from numpy: drawing them by its `init` takes longer to compile than the test."""
    shapes = flatten(jax.eval_shape(objective.init, jax.random.key(0), batch))
    return nest({name: drawn(name, x.shape) for name, x in shapes.items()})


def drawn(name: str, shape: tuple[int, ...]) -> jax.Array:
    """A parameter by its name."""
    draw = np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape)
    zero = name.endswith("/b")  # of LoRA
    return jnp.asarray(0 * draw if zero else draw / max(np.prod(shape[:-1]), 1) ** 0.5, jnp.float32)
