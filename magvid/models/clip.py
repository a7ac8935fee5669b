"""CLIP's text and image towers (Radford et al., 2021), with the weights of OpenAI's and OpenCLIP's models.

Pre-LN transformers. Layer names are those of the transformers library, so that conversion is a list of few rules. Sizes
of the published towers are in configs/clips.py.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from magvid.models.attention import attention
from magvid.models.layers import Dense, check_sizes, lecun_normal, normal
from magvid.models.resize import covering, resize_antialiased, resize_bicubic
from magvid.sharding import edge, rematerialised

# Of pixels in [0, 1]; the towers read (x - MEAN) / STD.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

LayerNorm = partial(nn.LayerNorm, epsilon=1e-5)


def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """OpenAI's approximation of GELU; OpenCLIP's models have the exact one, `layers.gelu`."""
    return x * jax.nn.sigmoid(1.702 * x)


def normalise(images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """Pixels in [0, 1] as the image tower reads them."""
    return (images - jnp.asarray(MEAN, images.dtype)) / jnp.asarray(STD, images.dtype)


def prepare(images: Float[Array, "b h w 3"], size: tuple[int, int] = (224, 224)) -> Float[Array, "b h2 w2 3"]:
    """Pixels in [0, 1] of any size -> what Stable Video Diffusion's CLIP tower reads: the whole image, squeezed to `size`.

    The original resizes in [-1, 1]: the same, because every row of a resizing matrix sums to 1.
    """
    return normalise(resize_antialiased(images, size))


def shortest_side(images: Float[Array, "b h w 3"], size: Sequence[int] = (224, 224)) -> Float[Array, "b h2 w2 3"]:
    """What CLIP's published image processor (transformers' CLIPProcessor, on Pillow) makes of pixels in [0, 1]: the
    middle of the image, resized (bicubic, anti-aliased) so that it just covers `size`, normalised.

    See `resize.covering`; `magvid.data.clip.shortest_side` is Pillow's own.
    """
    return normalise(covering(images, size, size))


class Encoded(NamedTuple):
    """What a tower makes of a batch."""

    tokens: Float[Array, "b n d"]  # text: after the final LayerNorm; image: before it, the class token first
    pooled: Float[Array, "b d"]  # text: the token at EOS; image: the class token after the last LayerNorm
    embedding: Float[Array, "b p"] | None  # `pooled`, projected into the space that both towers share


class SelfAttention(nn.Module):
    """Multi-head self-attention with biases; `out_std`: of the initial output projection."""

    heads: int
    out_std: float
    dtype: type | str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], allowed: Bool[Array, "1 1 n n"] | None) -> Float[Array, "b n d"]:
        b, n, d = x.shape
        dense = lambda name, std: Dense(d, kernel_init=normal(std), dtype=self.dtype, name=f"{name}_proj")
        q, k, v = (dense(name, d**-0.5)(x).reshape(b, n, self.heads, -1) for name in "qkv")
        return dense("out", self.out_std)(attention(q, k, v, allowed=allowed).reshape(b, n, d))


class Layer(nn.Module):
    """x + attention(LN(x)), then x + MLP(LN(x)); `branches`: how many of the two a whole tower sums up."""

    heads: int
    mlp: int
    activation: Callable
    branches: int
    dtype: type | str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], allowed: Bool[Array, "1 1 n n"] | None) -> Float[Array, "b n d"]:
        d = x.shape[-1]
        out_std = (d * self.branches) ** -0.5  # CLIP's initialisation: the sum of all branches stays of size 1
        norm = partial(LayerNorm, dtype=self.dtype)
        y = norm(name="layer_norm1")(x)
        x = x + SelfAttention(self.heads, out_std, self.dtype, name="self_attn")(y, allowed)
        y = norm(name="layer_norm2")(x)
        y = Dense(self.mlp, kernel_init=normal((2 * d) ** -0.5), dtype=self.dtype, name="fc1")(y)
        return x + Dense(d, kernel_init=normal(out_std), dtype=self.dtype, name="fc2")(self.activation(y))


class Encoder(nn.Module):
    """`depth` layers. Returns what leaves the last one, and what leaves the one `skip` layers before it."""

    depth: int
    heads: int
    mlp: int
    activation: Callable = quick_gelu
    skip: int = 0
    remat: bool = False
    dtype: type | str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], allowed: Bool[Array, "1 1 n n"] | None = None
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b n d"]]:
        check_sizes(x.shape[1], x.shape[1], x.shape[2], self.heads, 0)
        if not 0 <= self.skip < self.depth:
            raise ValueError(f"skip={self.skip} of {self.depth} layers: give a number from 0 to {self.depth - 1}")
        layer: Callable = rematerialised(Layer) if self.remat else Layer
        sizes = self.heads, self.mlp, self.activation, 2 * self.depth, self.dtype
        early = x
        for i in range(self.depth):
            x = edge(layer(*sizes, name=f"layers_{i}")(x, allowed))
            if i == self.depth - 1 - self.skip:
                early = x
        return x, early


class TextTower(nn.Module):
    """ids (b n), n <= length -> `Encoded`; each token reads those before it.

    `eos`: the id whose first place is pooled; None takes the highest id, as the original, where EOS is the last of the
    vocabulary. `skip` layers are left out of `tokens`, which then still pass the final LayerNorm (Stable Diffusion 2's
    "penultimate layer" is skip=1, or a tower of one layer less); `pooled` is that of the whole tower. No projection: no
    `embedding`.
    """

    vocab: int
    length: int
    width: int
    depth: int
    heads: int
    mlp: int
    activation: Callable = quick_gelu
    projection: int | None = None
    eos: int | None = None
    skip: int = 0
    remat: bool = False
    dtype: type | str | None = None

    @nn.compact
    def __call__(self, ids: Int[Array, "b n"]) -> Encoded:
        n = ids.shape[1]
        check_sizes(n, self.length, self.width, self.heads, 0)
        words = nn.Embed(self.vocab, self.width, embedding_init=normal(0.02), dtype=self.dtype, name="token_embedding")
        positions = self.param("position_embedding", normal(0.01), (self.length, self.width))
        x = words(ids)
        x = x + positions[:n].astype(x.dtype)
        causal = jnp.tril(jnp.ones((1, 1, n, n), bool))
        sizes = self.depth, self.heads, self.mlp, self.activation, self.skip, self.remat, self.dtype
        last, early = Encoder(*sizes, name="encoder")(x, causal)
        norm = LayerNorm(dtype=self.dtype, name="final_layer_norm")
        last = norm(last)
        tokens = norm(early) if self.skip else last
        end = jnp.argmax(ids if self.eos is None else ids == self.eos, axis=1)
        pooled = jnp.take_along_axis(last, end[:, None, None], axis=1)[:, 0]
        return Encoded(tokens, pooled, _project(self, pooled))


class PatchEmbedding(nn.Module):
    """Convolution whose stride is its kernel, as one matrix product: (b h w 3) -> (b h/p w/p d)."""

    features: int
    patch: int
    dtype: type | str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b gh gw d"]:
        p, (b, h, w, c) = self.patch, x.shape
        if h % p or w % p:
            raise ValueError(f"an image of {h}x{w} cannot be cut into patches of {p}x{p}: give multiples")
        kernel = self.param("kernel", lecun_normal, (p, p, c, self.features))
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        x = x.reshape(b, h // p, p, w // p, p, c).swapaxes(2, 3).reshape(b, h // p, w // p, p * p * c)
        return x @ kernel.reshape(-1, self.features)


class VisionTower(nn.Module):
    """Normalised images (b h w 3) of the size `image` -> `Encoded`.

    `tokens` leave the last layer and have not passed `post_layernorm` (as MAVIN reads them). With `interpolate`, images
    may have any size that is a multiple of `patch`: positions are then resized, bicubic.
    """

    width: int
    depth: int
    heads: int
    mlp: int
    patch: int
    image: Sequence[int] = (224, 224)
    activation: Callable = quick_gelu
    projection: int | None = None
    interpolate: bool = False
    remat: bool = False
    dtype: type | str | None = None

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"]) -> Encoded:
        size, learned = images.shape[1:3], tuple(self.image)
        if size != learned and not self.interpolate:
            raise ValueError(
                f"images of {size[0]}x{size[1]} do not fit the tower's {learned[0]}x{learned[1]}: resize them "
                "(magvid.models.clip.prepare), or set interpolate"
            )
        x = PatchEmbedding(self.width, self.patch, self.dtype, name="patch_embedding")(images)
        b, *grid, d = x.shape
        trained = [n // self.patch for n in learned]
        first = self.param("class_embedding", normal(d**-0.5), (d,)).astype(x.dtype)
        positions = self.param("position_embedding", normal(d**-0.5), (1 + math.prod(trained), d))
        if grid != trained:
            cells = resize_bicubic(positions[1:].reshape(1, *trained, d), tuple(grid))
            positions = jnp.concatenate([positions[:1], cells.reshape(-1, d)])
        x = jnp.concatenate([jnp.broadcast_to(first, (b, 1, d)), x.reshape(b, -1, d)], axis=1) + positions.astype(x.dtype)
        x = LayerNorm(dtype=self.dtype, name="pre_layernorm")(x)
        sizes = self.depth, self.heads, self.mlp, self.activation, 0, self.remat, self.dtype
        tokens, _ = Encoder(*sizes, name="encoder")(x)
        pooled = LayerNorm(dtype=self.dtype, name="post_layernorm")(tokens[:, 0])
        return Encoded(tokens, pooled, _project(self, pooled))


def _project(tower: TextTower | VisionTower, pooled: Float[Array, "b d"]) -> Float[Array, "b p"] | None:
    """Inside of a tower's compact call: its layer `projection`."""
    if tower.projection is None:
        return None
    init = normal(pooled.shape[-1] ** -0.5)
    return Dense(tower.projection, use_bias=False, kernel_init=init, dtype=tower.dtype, name="projection")(pooled)


def unit(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """x of length 1, in float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 1e-24))


class CLIP(nn.Module):
    """Both towers, which need one `projection`, and the learned scale of their cosines (its logarithm: `logit_scale`)."""

    text: nn.Module
    vision: nn.Module
    temperature: float = 0.07

    def setup(self):
        if self.text.projection is None or self.text.projection != self.vision.projection:
            raise ValueError(
                f"projection is {self.text.projection} of the text tower and {self.vision.projection} of the image tower: "
                "give both the same"
            )
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(-math.log(self.temperature)), ())

    def __call__(self, images: Float[Array, "b h w 3"], ids: Int[Array, "m n"]) -> Float[Array, "b m"]:
        """Scores of every image with every text."""
        return self.scores(self.embed_images(images), self.embed_texts(ids))

    def embed_images(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b p"]:
        """Of length 1, float32."""
        return unit(self.vision(images).embedding)

    def embed_frames(self, video: Float[Array, "b t h w 3"]) -> Float[Array, "b t p"]:
        """Of every frame of a video in [0, 1], which is normalised here."""
        b, t = video.shape[:2]
        return self.embed_images(normalise(video.reshape(b * t, *video.shape[2:]))).reshape(b, t, -1)

    def embed_texts(self, ids: Int[Array, "b n"]) -> Float[Array, "b p"]:
        """Of length 1, float32."""
        return unit(self.text(ids).embedding)

    def scores(self, images: Float[Array, "b p"], texts: Float[Array, "m p"]) -> Float[Array, "b m"]:
        """exp(logit_scale) * cosine."""
        return jnp.exp(self.logit_scale.astype(jnp.float32)) * (images @ texts.T)


class TemporalPool(nn.Module):
    """Embeddings of frames (b t p) of length 1, t = `frames` -> one embedding (b p) of length 1: their mean, and what an
    encoder that knows their order adds to it (CLIP4Clip's sequential transformer; Luo et al., 2021).
    """

    frames: int
    depth: int
    heads: int
    mlp: int
    activation: Callable = quick_gelu
    dtype: type | str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b t p"]) -> Float[Array, "b p"]:
        t, p = x.shape[1:]
        if t != self.frames:
            raise ValueError(f"clips of {t} frames, but the order of {self.frames} is learned: take so many of each clip")
        x = x * p**0.5  # entries of size 1, as the encoder's own
        positions = self.param("position_embedding", normal(0.5), (t, p))
        y, _ = Encoder(self.depth, self.heads, self.mlp, self.activation, dtype=self.dtype, name="encoder")(x + positions)
        return unit(jnp.mean(x + y, axis=1))
