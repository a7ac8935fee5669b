"""What a diffusion model is told, from a batch: modules (batch, keep) -> Condition.

keep = {name: bool (b,)} hides conditions clip by clip: where it is False, a condition is replaced by its null. Training
drops conditions so, guidance makes its null branches so; a name that is absent is kept. `names` are those that a
conditioner obeys, `reads` what a person has to give: "text", "image", "video". Every entry of `batch` has the batch as its first
axis. Sub-modules are named for the group of parameters that they have in an objective: two conditioners with a `vae` share one.

What frozen towers say of a clip is the same in every step. A conditioner that can be told it says so: `features(batch)` is that, as
entries of a batch, which `__call__` takes in place of the towers where they are there; `entries` are their names, `towers` the sub-modules
that make them, `inputs` the entries that they are made of beside the video (those of them that there are), `made_by` the other fields that
have a say in them. `magvid encode --features=all` keeps them.
"""

from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from magvid.types import Condition

Keep = Mapping[str, Array]


def kept(keep: Keep, name: str, like: Array) -> Bool[Array, "b ..."]:
    """keep[name], shaped so that it broadcasts against `like` (b ...)."""
    mask = keep.get(name, jnp.ones(len(like), bool))
    return jnp.reshape(mask, (-1,) + (1,) * (like.ndim - 1))


def first_frame(batch: Mapping[str, Array]) -> Float[Array, "b h w 3"]:
    """batch["image"] (b h w 3), or else the first frame of batch["frames"] or batch["video"], in [0, 1]."""
    if "image" in batch:
        image = batch["image"]
    elif name := next((name for name in ("frames", "video") if name in batch), None):
        image = batch[name][:, 0]
    else:
        raise ValueError(f'an image is conditioned on: give "image" or "video" beside {sorted(batch)}')
    return image.astype(jnp.float32) / 255 if image.dtype == jnp.uint8 else image


def first_frames(batch: Mapping[str, Array], count: int) -> Float[Array, "b count h w 3"]:
    """The first `count` frames of batch["frames"] or batch["video"] in [0, 1]; of one, batch["image"] will do."""
    if count == 1:
        return first_frame(batch)[:, None]
    name = "frames" if "frames" in batch else "video"
    if name not in batch or batch[name].shape[1] < count:
        has = f"{batch[name].shape[1]} frames" if name in batch else f"{sorted(batch)}"
        raise ValueError(f'{count} frames are given to this model: a "video" of at least so many is needed, got {has}')
    video = batch[name][:, :count]
    return video.astype(jnp.float32) / 255 if video.dtype == jnp.uint8 else video


def told(batch: Mapping[str, Array], name: str, tower: nn.Module) -> Array | None:
    """The feature of this name, if it is there, in the type in which the tower would say it."""
    return jnp.asarray(batch[name]).astype(getattr(tower, "dtype", None) or jnp.float32) if name in batch else None


def read_texts(text: nn.Module, ids: Array) -> Float[Array, "b s n c"]:
    """What a text tower says of several texts of each clip, ids (b s n)."""
    tokens = text(ids.reshape(-1, ids.shape[-1])).tokens
    return tokens.reshape(*ids.shape[:2], *tokens.shape[1:])


class TextTokens(nn.Module):
    """Hidden states of a text tower (models.clip) as tokens, the same for every frame.

    The tower's result has `tokens` (b n c). Token ids are batch[`key`] (b n). The null is the empty prompt: `null`, its n
    ids, or batch["null_ids"] (b n), which wins and may hold a negative prompt.
    """

    text: nn.Module
    null: Sequence[int] = ()
    token: str = "text"
    key: str = "text_ids"

    reads, towers, made_by = ("text",), ("text",), ("null",)

    @property
    def names(self) -> tuple[str, ...]:
        return (self.token,)

    @property
    def entries(self) -> tuple[str, ...]:
        return (f"{self.token}_text",)

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.key, "null_ids")

    def features(self, batch: Mapping[str, Array]) -> dict[str, Float[Array, "b 2 n c"]]:
        """Of the text and of the null."""
        ids = self.ids(batch)
        null = jnp.broadcast_to(self.null_ids(batch, ids), ids.shape)
        return {self.entries[0]: read_texts(self.text, jnp.stack([ids, null], axis=1))}

    def __call__(self, batch: Mapping[str, Array], keep: Keep) -> Condition:
        found = told(batch, self.entries[0], self.text)
        if found is None:
            ids = self.ids(batch)
            if self.token in keep:
                ids = jnp.where(kept(keep, self.token, ids), ids, self.null_ids(batch, ids))
            return Condition(tokens={self.token: self.text(ids).tokens[:, None]})
        tokens, null = found[:, 0], found[:, 1]
        return Condition(tokens={self.token: jnp.where(kept(keep, self.token, tokens), tokens, null)[:, None]})

    def ids(self, batch: Mapping[str, Array]) -> Array:
        if self.key not in batch:
            raise ValueError(f'the tokens of the text are missing: give "{self.key}" beside {sorted(batch)}')
        return jnp.asarray(batch[self.key])

    def null_ids(self, batch: Mapping[str, Array], ids: Array) -> Array:
        null = jnp.asarray(batch["null_ids"] if "null_ids" in batch else [self.null], ids.dtype)
        if null.shape[1] != ids.shape[1]:
            raise ValueError(
                f"the empty prompt has {null.shape[1]} ids and a prompt {ids.shape[1]}: give the empty prompt, padded "
                'likewise, as `null` or as "null_ids"'
            )
        return null


class ImageTokens(nn.Module):
    """The first frame through an image tower (models.clip) as tokens, the same for every frame; the null is zeros.

    The tower's result has `embedding` (b c), which becomes one token (SVD), and `tokens` (b n c), which are taken instead
    with `pooled` False. `prepare`: images (b h w 3) in [0, 1] -> what the tower reads; SVD's is `models.clip.prepare`.
    """

    vision: nn.Module
    prepare: Callable[[Array], Array]
    pooled: bool = True
    token: str = "image"

    reads, towers, made_by, inputs = ("image",), ("vision",), ("prepare", "pooled"), ()

    @property
    def names(self) -> tuple[str, ...]:
        return (self.token,)

    @property
    def entries(self) -> tuple[str, ...]:
        return (f"{self.token}_vision",)

    def features(self, batch: Mapping[str, Array]) -> dict[str, Float[Array, "b n c"]]:
        encoded = self.vision(self.prepare(first_frame(batch)))
        return {self.entries[0]: encoded.embedding[:, None] if self.pooled else encoded.tokens}

    def __call__(self, batch: Mapping[str, Array], keep: Keep) -> Condition:
        found = told(batch, self.entries[0], self.vision)
        tokens = self.features(batch)[self.entries[0]] if found is None else found
        tokens = jnp.where(kept(keep, self.token, tokens), tokens, 0)
        return Condition(tokens={self.token: tokens[:, None]})


class BoundaryTokens(nn.Module):
    """MAVIN's boundary frame guidance: hidden states of an image tower for the frames before and after the gap, one after the
    other, the same for every frame; the null is zeros.

    The gap is batch["start"] and batch["end"] (b,) (`diffusion.mavin.describe`), the frames are of batch["video"] (b t h w
    3), uint8 or in [0, 1]. `ends`: which of the two are read. `prepare`: images (b h w 3) in [0, 1] -> what the tower reads.
    """

    vision: nn.Module
    prepare: Callable[[Array], Array]
    ends: Sequence[str] = ("before", "after")
    token: str = "image"

    reads = ("video",)

    @property
    def names(self) -> tuple[str, ...]:
        return (self.token,)

    def __call__(self, batch: Mapping[str, Array], keep: Keep) -> Condition:
        if missing := [n for n in ("video", "start", "end") if n not in batch]:
            raise ValueError(f"boundary frames are conditioned on: give {', '.join(missing)} beside {sorted(batch)}")
        video = jnp.asarray(batch["video"])
        places = dict(before=batch["start"] - 1, after=batch["end"])
        index = jnp.clip(jnp.stack([places[end] for end in self.ends], axis=1), 0, video.shape[1] - 1)
        frames = jnp.take_along_axis(video, index[..., None, None, None], axis=1)
        images = first_frame({"image": frames.reshape(-1, *frames.shape[2:])})
        tokens = self.vision(self.prepare(images)).tokens
        tokens = tokens.reshape(len(video), -1, tokens.shape[-1])
        tokens = jnp.where(kept(keep, self.token, tokens), tokens, 0)
        return Condition(tokens={self.token: tokens[:, None]})


class ImageLatent(nn.Module):
    """The first frame's latent, for every frame, joined to the noisy ones; the null is zeros (SVD).

    The frame, with noise of strength batch["aug"] (b,) or `aug`, goes through `vae`, whose mode is taken *unscaled*. The
    strength is told as the scalar "aug" with `tell`. The noise comes from the random stream "condition".
    """

    vae: nn.Module
    aug: float = 0.02
    tell: bool = True
    obeys: str = "image"

    reads = ("image",)

    @property
    def names(self) -> tuple[str, ...]:
        return (self.obeys,)

    def __call__(self, batch: Mapping[str, Array], keep: Keep) -> Condition:
        image = 2 * first_frame(batch) - 1
        aug = jnp.asarray(batch.get("aug", jnp.full(len(image), self.aug)), jnp.float32)
        noise = jax.random.normal(self.make_rng("condition"), image.shape)
        latent = self.vae.encode((image + aug[:, None, None, None] * noise)[:, None]).mode().astype(jnp.float32)
        told = {"aug": aug} if self.tell else {}
        return Condition(concat=jnp.where(kept(keep, self.obeys, latent), latent, 0), scalars=told)


class GivenLatents(nn.Module):
    """The latents of the first `given` frames and then of grey ones, joined to the noisy ones of a clip of `frames` (AID); the null is zeros.

    As `ImageLatent`: through `vae`, unscaled mode, with noise of strength batch["aug"] (b,) or `aug` on what is given. `grey` False: the
    last given frame stands still in place of grey ones, which is what SVD was trained on. `mask`: one channel more, 1 where a frame
    is given.
    """

    vae: nn.Module
    frames: int
    given: int = 1
    aug: float = 0.02
    tell: bool = True
    grey: bool = True
    mask: bool = False
    obeys: str = "image"

    @property
    def names(self) -> tuple[str, ...]:
        return (self.obeys,)

    @property
    def reads(self) -> tuple[str, ...]:
        return ("image", *(["video"] if self.given > 1 else []))

    def __call__(self, batch: Mapping[str, Array], keep: Keep) -> Condition:
        if not 0 < self.given < self.frames:
            raise ValueError(f"given={self.given} of {self.frames} frames: give at least one, and leave one to predict")
        frames = 2 * first_frames(batch, self.given) - 1
        aug = jnp.asarray(batch.get("aug", jnp.full(len(frames), self.aug)), jnp.float32)
        noise = jax.random.normal(self.make_rng("condition"), frames.shape)
        frames = frames + aug[:, None, None, None, None] * noise
        if self.grey:
            frames = jnp.concatenate([frames, jnp.zeros_like(frames[:, :1])], axis=1)  # one stands for all
        latent = self.vae.encode(frames).mode().astype(jnp.float32)
        latent = latent[:, jnp.minimum(jnp.arange(self.frames), frames.shape[1] - 1)]
        if self.mask:
            known = (jnp.arange(self.frames) < self.given).astype(jnp.float32)[:, None, None, None]
            latent = jnp.concatenate([latent, jnp.broadcast_to(known, (*latent.shape[:-1], 1))], axis=-1)
        told = {"aug": aug} if self.tell else {}
        return Condition(concat=jnp.where(kept(keep, self.obeys, latent), latent, 0), scalars=told)


class Scalars(nn.Module):
    """Numbers that a network embeds, from the batch or else the constants of `values`; they have no null.

    They are told as they are: SVD's network wants dict(fps=6, motion=127) for 7 frames per second, one less.
    """

    values: Mapping[str, float]

    names = ()

    def __call__(self, batch: Mapping[str, Array], keep: Keep) -> Condition:
        b = len(next(iter(batch.values())))
        number = lambda name, value: jnp.asarray(batch.get(name, jnp.full(b, value)), jnp.float32)
        return Condition(scalars={name: number(name, value) for name, value in self.values.items()})
