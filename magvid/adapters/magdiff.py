"""MagDiff (Zhao et al., ECCV 2024, arXiv 2311.17338): pictures of an entity, beside a text, told to an inflated Stable Diffusion.

*Subject-driven alignment* (section 3.2) is in the data: what is told is the subject alone, on black (`magvid.data.entities`), a
picture for every frame or for some of them. *Adaptive prompts alignment* (3.3): `EPAF` reads text and picture apart and weighs
them, the picture as `Resampler` makes tokens of it (`EntityTokens`). *High-fidelity alignment* (3.4): `Pyramid` joins the latents of
the picture at several sizes, which are joined to the noisy ones (`EntityLatents`).

A batch has "entities" (b t h w 3), uint8 or in [0, 1], one place for every frame, and "entity_valid" bool (b t): which of them are
pictures; the others are black. Numbers as in the released code, which has the last level of the pyramid alone, the clip's own size.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Bool, Float

from magvid.models.attention import Attention, attention
from magvid.models.conditioners import Keep, kept, told
from magvid.models.layers import Conv, Dense, gelu, normal
from magvid.types import Condition, Params

LayerNorm = partial(nn.LayerNorm, epsilon=1e-5)


# Adaptive prompts alignment -----------------------------------------------------------------------------------------


class EPAF(Attention):
    """Text and picture read by one query with keys and values of their own:
    a_t softmax(q k_t) v_t + a_i softmax(q k_i) v_i, with two learned numbers per layer. A `cross_attention` for
    `unet.Transformer`.

    `tokens` names the text and the picture, `scales` their first a. The released code reads both from one sequence and
    splits it after 77 tokens. Where no picture counts (`Condition.masks`), its part is zero.
    """

    tokens: Sequence[str] = ("text", "image")
    scales: Sequence[float] = (1.0, 1.5)

    def mix(self, x: Float[Array, "b s n c"], condition: Condition | None) -> Float[Array, "b s n c"]:
        if len(self.tokens) != 2 or len(self.scales) != 2:
            raise ValueError(f"EPAF reads two kinds of tokens with a scale each, got {self.tokens} and {self.scales}")
        split = partial(self.split, width=x.shape[-1])
        q, y = split("to_q", x), 0.0
        for name, kind, suffix, first in zip(self.tokens, ("text", "image"), ("", "_ip"), self.scales):
            context, mask = self.context(condition, (name,))
            scale = self.param(f"{kind}_scale", nn.initializers.constant(first), (1,)).astype(q.dtype)
            found = self.attend(q, split(f"to_k{suffix}", context), split(f"to_v{suffix}", context), mask)
            if mask is not None:
                found = jnp.where(mask.any(axis=1)[:, None, None, None], found, 0)
            y = y + scale * found
        return y


def begun(loaded: Params, shapes: Params) -> Params:
    """For `config.init`: the weights of a network that is told texts alone, for one of `shapes`. What its first convolution (kh kw c o) does not
    read comes last, and counts for nothing at first. Where pictures are read apart, their keys and values begin as the text's, as IP-Adapter's
    do (Ye et al., 2023); the scale of what they read is as initialised.
    """
    kernel, wanted = loaded["conv_in"]["kernel"], shapes["conv_in"]["kernel"].shape
    more = max(wanted[-2] - kernel.shape[-2], 0)
    padded = np.pad(kernel, [*[(0, 0)] * (kernel.ndim - 2), (0, more), (0, 0)])
    flat = flatten_dict({**loaded, "conv_in": {**loaded["conv_in"], "kernel": padded}})
    for name, shape in flatten_dict(shapes).items():
        texts = tuple(part.removesuffix("_ip") for part in name)
        if name not in flat and texts in flat and flat[texts].shape == shape.shape:
            flat[name] = flat[texts]
    return unflatten_dict(flat)


class Resampler(nn.Module):
    """A Perceiver resampler (Alayrac et al., "Flamingo", NeurIPS 2022) as in IP-Adapter: any number of tokens -> `queries` tokens.

    `depth` times: queries + attention(LN queries; LN x and LN queries), + linear(gelu(linear(LN queries))), without biases.
    """

    width: int = 1024
    queries: int = 16
    depth: int = 4
    heads: int = 12
    head_dim: int = 64
    out: int = 1024
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b q e"]:
        dense, norm = partial(Dense, dtype=self.dtype), partial(LayerNorm, dtype=self.dtype)
        plain = partial(dense, use_bias=False)
        heads = lambda y: y.reshape(*y.shape[:2], self.heads, self.head_dim)
        x = dense(self.width, name="proj_in")(x)
        y = self.param("latents", normal(self.width**-0.5), (1, self.queries, self.width))
        y = jnp.broadcast_to(y, (len(x), *y.shape[1:])).astype(x.dtype)
        inner = self.heads * self.head_dim
        for i in range(self.depth):
            asks = norm(name=f"layers_{i}_norm2")(y)
            read = jnp.concatenate([norm(name=f"layers_{i}_norm1")(x), asks], axis=1)
            q = heads(plain(inner, name=f"layers_{i}_to_q")(asks))
            k, v = map(heads, jnp.split(plain(2 * inner, name=f"layers_{i}_to_kv")(read), 2, axis=-1))
            y = y + plain(self.width, name=f"layers_{i}_to_out")(attention(q, k, v).reshape(*y.shape[:2], inner))
            inside = gelu(plain(4 * self.width, name=f"layers_{i}_ff_in")(norm(name=f"layers_{i}_ff_norm")(y)))
            y = y + plain(self.width, name=f"layers_{i}_ff_out")(inside)
        return norm(name="norm_out")(dense(self.out, name="proj_out")(y))


class EntityTokens(nn.Module):
    """`resampler`'s tokens of the entity's pictures, all of them for every frame; the null is no picture.

    The tower's result has `tokens` (b n c), its hidden states. `prepare`: images (b h w 3) in [0, 1] -> what the tower reads.
    The released code attends to the black pictures as well (`count_all`), and gives the tower blue in place of red (`bgr`).
    """

    vision: nn.Module
    resampler: nn.Module
    prepare: Callable[[Array], Array]
    count_all: bool = False
    bgr: bool = False
    token: str = "image"

    reads, inputs, made_by = ("entities",), ("entities", "entity_valid"), ("prepare", "bgr")

    @property
    def names(self) -> tuple[str, ...]:
        return (self.token,)

    @property
    def towers(self) -> tuple[str, ...]:
        return () if self.count_all else ("vision",)  # black pictures, which dropout makes, count

    @property
    def entries(self) -> tuple[str, ...]:
        return (f"{self.token}_vision",)

    def features(self, batch: Mapping[str, Array]) -> dict[str, Float[Array, "b t n c"]]:
        return {self.entries[0]: self.see(entities(batch, {}, self.token)[0])}

    def see(self, pictures: Float[Array, "b t h w 3"]) -> Float[Array, "b t n c"]:
        each = (pictures[..., ::-1] if self.bgr else pictures).reshape(-1, *pictures.shape[2:])
        tokens = self.vision(self.prepare(each)).tokens
        return tokens.reshape(*pictures.shape[:2], *tokens.shape[1:])

    def __call__(self, batch: Mapping[str, Array], keep: Keep) -> Condition:
        pictures, there = entities(batch, keep, self.token)
        seen = told(batch, self.entries[0], self.vision)
        seen = self.see(pictures) if seen is None else seen
        b = len(there)
        tokens = self.resampler(seen.reshape(-1, *seen.shape[2:]))
        masks = {} if self.count_all else {self.token: jnp.repeat(there, tokens.shape[1], axis=1)}
        return Condition(tokens={self.token: tokens.reshape(b, 1, -1, tokens.shape[-1])}, masks=masks)


# High-fidelity alignment --------------------------------------------------------------------------------------------


class Pyramid(nn.Module):
    """The last of the latents, those of the clip's size, + a 3x3 convolution of each of the others, scaled to that size (bilinear, with
    anti-aliasing: nothing of a larger picture falls between the samples); the convolutions begin at zero, and of one size there are none, as in the released code.
    """

    dtype: Any = None

    @nn.compact
    def __call__(self, latents: Sequence[Float[Array, "b t _ _ c"]]) -> Float[Array, "b t h w c"]:
        *larger, own = latents
        for i, z in enumerate(larger):
            z = jax.image.resize(z, (*z.shape[:2], *own.shape[2:]), "linear")
            own = own + Conv(own.shape[-1], (1, 3, 3), kernel_init=nn.initializers.zeros, dtype=self.dtype, name=f"align_{i}")(z)
        return own


class EntityLatents(nn.Module):
    """The latents of the entity's pictures, each joined to the noisy latent of its frame; the null is no picture.

    levels: sizes at which the pictures go through `vae`, in units of the clip's; the last is 1. The pictures in the batch have the
    first, largest one. Latents are scaled as the network's own are; their mode is taken. A frame without a picture is told black, as in the released code, or with
    `repeat` the last picture before it: layers between frames see one place of all frames each, so that of a picture that only one frame is told, no other
    frame sees more than its tokens once its subject has moved on.
    """

    vae: nn.Module
    pyramid: nn.Module
    levels: Sequence[float] = (1.5, 1.25, 1.0)
    repeat: bool = False
    obeys: str = "image"

    reads, towers, inputs, made_by = ("entities",), ("vae",), ("entities", "entity_valid"), ("levels",)

    @property
    def names(self) -> tuple[str, ...]:
        return (self.obeys,)

    @property
    def entries(self) -> tuple[str, ...]:
        return tuple(f"{self.obeys}_vae_{i}" for i in range(len(self.levels)))

    def features(self, batch: Mapping[str, Array]) -> dict[str, Float[Array, "b t+1 h w c"]]:
        """Of every level; the last of the pictures is black, which stands for none."""
        pictures, _ = entities(batch, {}, self.obeys)
        pictures = jnp.concatenate([pictures, jnp.zeros_like(pictures[:, :1])], axis=1)
        return dict(zip(self.entries, self.see(pictures), strict=True))

    def __call__(self, batch: Mapping[str, Array], keep: Keep) -> Condition:
        if self.levels[-1] != 1 or list(self.levels) != sorted(self.levels, reverse=True):
            raise ValueError(f"levels={tuple(self.levels)}: sizes in units of the clip's, the largest first, the last 1")
        pictures, there = entities(batch, keep, self.obeys)
        if self.entries[0] in batch:
            every = (jnp.asarray(batch[name], jnp.float32) for name in self.entries)
            latents = [jnp.where(kept(keep, self.obeys, z), z, z[:, -1:])[:, :-1] for z in every]
        else:
            latents = self.see(pictures)
        if self.repeat:
            number = jnp.arange(there.shape[1])
            shown = jax.lax.cummax(jnp.where(there, number, -1), axis=1)  # -1: none so far, and the frame keeps its own, which is black
            shown = jnp.where(shown < 0, number, shown)
            latents = [jnp.take_along_axis(z, shown[..., None, None, None], axis=1) for z in latents]
        return Condition(concat=self.pyramid(latents))

    def see(self, pictures: Float[Array, "b t h w 3"]) -> list[Float[Array, "b t _ _ c"]]:
        """The latents of pictures at every level."""
        factor, largest = self.vae.factor, self.levels[0]
        size = lambda level: [round(side * level / largest / factor) * factor for side in pictures.shape[2:4]]
        return [self.encode(pictures, size(level)) for level in self.levels]

    def encode(self, pictures: Float[Array, "b t h w 3"], size: Sequence[int]) -> Float[Array, "b t hh wh c"]:
        if list(pictures.shape[2:4]) != list(size):
            pictures = jax.image.resize(pictures, (*pictures.shape[:2], *size, 3), "linear")
        return self.vae.encode(2 * pictures - 1).mode().astype(jnp.float32) * self.vae.scaling


def entities(batch: Mapping[str, Array], keep: Keep, name: str) -> tuple[Float[Array, "b t h w 3"], Bool[Array, "b t"]]:
    """The entity's pictures in [0, 1] and which of them there are; black and none of them where `keep` hides `name`."""
    if missing := [key for key in ("entities", "entity_valid") if key not in batch]:
        raise ValueError(f"pictures of an entity are told: give {', '.join(missing)} beside {sorted(batch)}")
    pictures, there = jnp.asarray(batch["entities"]), jnp.asarray(batch["entity_valid"], bool)
    if pictures.shape[:2] != there.shape:
        raise ValueError(f"entities are {pictures.shape} and entity_valid is {there.shape}: one of the latter for each picture")
    if pictures.dtype != jnp.uint8 and not jnp.issubdtype(pictures.dtype, jnp.floating):
        raise ValueError(f"entities are {pictures.dtype}: give uint8, 0 to 255, or float, 0 to 1")
    there = there & kept(keep, name, there)
    pictures = pictures.astype(jnp.float32) / 255 if pictures.dtype == jnp.uint8 else pictures
    return jnp.where(there[..., None, None, None], pictures, 0), there
