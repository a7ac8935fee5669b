"""Training and sampling of a diffusion model on latents of a frozen autoencoder, or on pixels."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from magvid.diffusion import mavin, predictions, samplers
from magvid.diffusion.guidance import chain, known_parts, ramp
from magvid.diffusion.predictions import Eps, Prediction, unit
from magvid.diffusion.samplers import DDIM, Sampler
from magvid.diffusion.schedules import Discrete, Level, Schedule, corrupt, uniform
from magvid.losses import weighted_mean
from magvid.objectives.vqgan import cut, scale
from magvid.types import Condition, Groups, Params


LATENTS = ("latents", "latent_mean", "noise")  # the entries of a batch that have the shape of latents
MERGED = ("adapters", "lora")  # groups that are merged into the network, LoRA last: its base has the adapters
READS = dict(text="T", image="I", entities="R")  # what a conditioner may read of a person's: the letter in a task's name


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How clips are sampled. `guidance` has rows (names of hidden conditions, weight), the one that hides most first:

        x0(hidden_1) + weight_1 (x0(hidden_2) - x0(hidden_1)) + ... + weight_k (x0(nothing hidden) - x0(hidden_k))

    One row is classifier-free guidance; ((("text", "image"), s_image), (("text",), s_text)) is AID's dual guidance. A
    weight may be a pair, linear over the frames. `wraps` are further functions from denoisers to denoisers, the innermost
    first (`diffusion.guidance.clip`). `mixer` makes what sampling begins with of noise and the frames that are known.
    """

    sampler: Sampler = DDIM()
    steps: int = 50
    guidance: Sequence[Any] = ()
    wraps: Sequence[Callable] = ()
    mixer: mavin.Mixer | None = None


@runtime_checkable
class Merged(Protocol):
    """Parameters in a group of their own that are merged into the network's (magvid.lora.LoRA, magvid.grafts.Grafts). `split`: (those of
    the network, those of the group), of what the network initialises.
    """

    def split(self, params: Params, key: Array) -> tuple[Params, Params]: ...

    def merge(self, params: Params, added: Params) -> Params: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Denoise:
    """batch: "video" (b t h w 3), or "latent_mean" and "latent_logvar" (b t h w c) as the autoencoder gives them, or
    "latents" (b t h w c), scaled as the network sees them; and what the conditioners read, or features of it. Optional: "known" bool (b t),
    frames that stay clean in place and are not learned (MAVIN); "loss_mask" (b t), weights of the frames in the loss;
    "valid" (b,); to sample, "noise" (b t h w c) to begin with, and "stays" bool (b t h w), pixels of the "video" that stay as they are.

    Groups: "network", "vae", the sub-modules of the conditioners by name, "adapters" and "lora". `trained` names those that get the
    loss; by default the network, or with `adapters` or `lora` only these, and the network is then taken from a run or frozen.

    times: (schedule, key, shape) -> levels. weight: (level, prediction) -> factor of the network's squared error.
    drop: rows (names, share of the clips); the conditions of a row are hidden together, those of different rows never, so
    (("text",), .05), (("image",), .05), (("text", "image"), .05) hides each alone and both at times.
    augmentation: (mean, std) of ln of the noise on the conditioning image, batch["aug"], in training (SVD: -3, 0.5).
    clip: (t h w) of the clips to sample where the batch has neither video, latents nor noise.
    tasks: {name: conditions that are hidden from the start}, for a model that was trained with `drop`: dict(TI2V=(),
    T2V=("image",)). Which one, batch["task"] (b,) says, if it is there. Default: one, with nothing hidden.
    in_parts: (decode, z) -> decode(z) that saves memory, such as `models.vae.in_chunks`, which says how exact it is.
    noising: which frames are "known" where the batch does not say so; without it all are noised. Of the gap that they leave,
    conditioners and network are told "start", "end" and "length" (`diffusion.mavin.describe`).
    carried: for a model that is given no frames: how many the windows of a long video share; 0: it makes none. The next window sees
    them noised to its level (as in RePaint, Lugmayr et al., 2022).
    """

    network: nn.Module
    vae: nn.Module | None = None
    conditioners: Sequence[nn.Module] = ()
    schedule: Schedule = Discrete()
    prediction: Prediction = Eps()
    times: Callable = uniform
    weight: Callable = unit
    drop: Sequence[Any] = ()
    augmentation: Sequence[float] | None = None
    sampling: Sampling = Sampling()
    adapters: Merged | None = None
    lora: Merged | None = None
    trained: Sequence[str] = ()
    clip: Sequence[int] | None = None
    tasks: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    in_parts: Callable | None = None
    noising: mavin.Noising | None = None
    carried: int = 0

    keeps = "latents"  # what `magvid encode` makes of clips; not a field

    def __post_init__(self):
        if not self.tasks:
            object.__setattr__(self, "tasks", {self._task_name(): ()})
        if self.clip is not None and min(self.clip) < 1:
            raise ValueError(f"clip={tuple(self.clip)}: a clip has at least one frame, row and column")
        if isinstance(self.prediction, Eps) and getattr(self.schedule, "zero_snr", False):
            raise ValueError("the noise says nothing about x0 at zero terminal SNR: predict v or x0, or set zero_snr=False")
        level, steps = getattr(self.sampling.mixer, "level", None), getattr(self.schedule, "steps", None)
        if level is not None and steps is not None and not (isinstance(level, int) and 0 <= level < steps):
            raise ValueError(f"the mixer's level={level} is no timestep: give a whole number from 0 to {steps - 1}, or None")
        shares = [share for _, share in self.drop]
        if min(shares, default=0) < 0 or sum(shares) > 1:
            raise ValueError(f"drop={self.drop}: at most one row hides a clip's conditions, so shares sum to at most 1")
        known = {n for c in self.conditioners for n in getattr(c, "names", ())}
        hidden = [(names, None) for names in self.tasks.values()]
        for field, rows in (("drop", self.drop), ("guidance", self.sampling.guidance), ("tasks", hidden)):
            if unknown := {n for names, _ in rows for n in names} - known:
                raise ValueError(f"{field} hides {sorted(unknown)}, but the conditioners have {sorted(known)}")

    def _reads(self, hidden: Sequence[str] = ()) -> set[str]:
        """What a person has to give where the conditions `hidden` are."""
        shown = [c for c in self.conditioners if not set(getattr(c, "names", ())) & set(hidden)]
        return {what for c in shown for what in getattr(c, "reads", ())}

    def _task_name(self) -> str:
        """What is told, in the field's words: T2V, I2V, TI2V, T2I; V where that is nothing."""
        told = "".join(letter for what, letter in READS.items() if what in self._reads())
        return told + ("2" if told else "") + ("I" if self.clip and self.clip[0] == 1 else "V")

    # Parameters ---------------------------------------------------------------------------------------------------

    def init(self, key: Array, batch: dict) -> Groups:
        groups: Groups = {}
        keys = jax.random.split(key, 4)
        batch = self.with_known(batch)
        if self.vae is not None:
            groups["vae"] = self.vae.init(keys[0], jnp.zeros(self.video_shape(batch)))["params"]
        parts = []
        for i, conditioner in enumerate(self.conditioners):
            rngs = {"params": jax.random.fold_in(keys[1], i), "condition": keys[1]}
            part, variables = conditioner.init_with_output(rngs, batch, {})
            for name, tree in variables.get("params", {}).items():
                if not isinstance(tree, Mapping):
                    owner = type(conditioner).__name__
                    raise ValueError(f"{owner}'s parameter {name} lies in no sub-module, and so in no group")
                groups.setdefault(name, tree)  # a conditioner may use but a part of a shared one
            parts.append(part)
        shape = self.latent_shape(batch)
        condition = join(parts, shape[1])
        groups["network"] = self.network.init(keys[2], jnp.zeros(shape), jnp.zeros(shape[0]), condition)["params"]
        for i, (name, merged) in enumerate(self._merged()):
            groups["network"], groups[name] = merged.split(groups["network"], jax.random.fold_in(keys[3], i) if i else keys[3])
        return groups

    def _merged(self) -> list[tuple[str, Merged]]:
        """What is merged into the network, by group, in this order."""
        return [(name, merged) for name in MERGED if (merged := getattr(self, name)) is not None]

    def denoiser(self, params: Groups) -> predictions.Denoiser:
        """(x, level, condition) -> x0."""
        return predictions.denoiser(self.raw(params), self.prediction)

    def raw(self, params: Groups, dropout: Array | None = None) -> Callable[[Array, Array, Condition], Array]:
        """The network (x, time, condition) -> its output, with adapters and LoRA merged in; `dropout`: a key, to train with it."""
        weights = params["network"]
        for name, merged in self._merged():
            weights = merged.merge(weights, params[name])
        rngs = None if dropout is None else {"dropout": dropout}
        return lambda x, time, condition: self.network.apply({"params": weights}, x, time, condition, rngs=rngs)

    # Training -----------------------------------------------------------------------------------------------------

    def loss(self, params: Groups, extra: dict, batch: dict, key: Array, step: Array | int, train: bool):
        """Squared error of the network's output, mean over the pixels and frames of a clip, weighted by its level, mean
        over clips. Conditions are dropped, and the network's dropout acts, in training only; levels and noise are drawn always.
        """
        keys = dict(zip(("latents", "level", "noise", "drop", "aug", "condition"), jax.random.split(key, 6), strict=True))
        x0 = self.latents(params, batch, keys["latents"])
        b, t = x0.shape[:2]
        if self.noising is not None and "known" not in batch:
            batch = {**batch, "known": self.noising.draw(jax.random.fold_in(key, 6), b, t)}
        batch = with_gap(batch)
        s: Level = self.times(self.schedule, keys["level"], (b,))
        noise = jax.random.normal(keys["noise"], x0.shape)
        xt, learned = corrupt(x0, noise, s), jnp.asarray(batch.get("loss_mask", jnp.ones((b, t))), jnp.float32)
        if "known" in batch:
            xt = jnp.where(batch["known"][..., None, None, None], x0, xt)
            learned = learned * ~batch["known"]
        if self.augmentation is not None:
            mean, std = self.augmentation
            batch = {**batch, "aug": jnp.exp(mean + std * jax.random.normal(keys["aug"], (b,)))}
        keep = self.keep(keys["drop"], b) if train else {}
        condition = self.condition(params, batch, keep, keys["condition"], t)
        scaled = self.prediction.coefficients(s.like(xt)).scale * xt
        output = self.raw(params, jax.random.fold_in(key, 7) if train else None)(scaled, s.time, condition).astype(jnp.float32)
        error = jnp.mean(jnp.square(output - self.prediction.target(x0, noise, s)), axis=(2, 3, 4))
        valid = jnp.asarray(batch.get("valid", jnp.ones(b)), jnp.float32)
        mean = lambda per_clip: jnp.sum(per_clip * valid) / jnp.maximum(jnp.sum(valid), 1)
        per_clip = weighted_mean(error, learned)
        loss = mean(per_clip * self.weight(s, self.prediction))
        trained = self.trained or tuple(name for name, _ in self._merged()) or ("network",)
        return {group: loss for group in trained}, ({"loss": loss, "unweighted": mean(per_clip)}, extra)

    def keep(self, key: Array, b: int) -> dict[str, Bool[Array, "b"]]:
        """Which conditions each clip keeps: one draw decides which row of `drop`, if any, hides its names."""
        draw, above, kept = jax.random.uniform(key, (b,)), 0.0, {}
        for names, share in self.drop:
            hit = (draw >= above) & (draw < above + share)
            kept |= {n: kept.get(n, True) & ~hit for n in names}
            above += share
        return kept

    def condition(self, params: Groups, batch: dict, keep: dict, key: Array, frames: int) -> Condition:
        """What all conditioners say, without gradient where their groups are frozen."""
        told = [c.apply({"params": params}, batch, keep, rngs={"condition": key}) for c in self.conditioners]
        return join(told, frames)

    # Latents ------------------------------------------------------------------------------------------------------

    def latents(self, params: Groups, batch: dict, key: Array | None) -> Float[Array, "b t h w c"]:
        """batch["latents"], or of the posterior a sample with `key`, its mean without; scaled, float32."""
        if "latents" in batch:
            return batch["latents"].astype(jnp.float32)
        if self.vae is None:
            return 2 * scale(batch["video"]) - 1
        posterior = self.posterior(params, batch)
        z = posterior.mode() if key is None else posterior.sample(key)
        return lax.stop_gradient(z * self.vae.scaling)

    def posterior(self, params: Groups, batch: dict) -> Any:
        """What the autoencoder makes of batch["video"], or batch["latent_mean"] and batch["latent_logvar"] that it made;
        float32.
        """
        if "latent_mean" in batch:
            found = self.vae.gaussian(batch["latent_mean"], batch["latent_logvar"])
        else:
            found = self.vae.apply({"params": params["vae"]}, 2 * scale(batch["video"]) - 1, method="encode")
        return jax.tree.map(lambda x: x.astype(jnp.float32), found)

    def decode(self, params: Groups, z: Float[Array, "b t hh wh d"]) -> Float[Array, "b t h w 3"]:
        """Scaled latents to video in [0, 1]."""
        if self.vae is not None:
            decode = lambda z: self.vae.apply({"params": params["vae"]}, z / self.vae.scaling, method="decode")
            z = (self.in_parts(decode, z) if self.in_parts else decode(z)).astype(jnp.float32)
        return jnp.clip((z + 1) / 2, 0, 1)

    def reconstruct(self, params: Groups, batch: dict) -> Float[Array, "b t h w 3"]:
        """batch["video"] through the autoencoder and back: the best that latents can express."""
        return cut(self.decode(params, self.latents(params, batch, None)), batch["video"])

    def video_shape(self, batch: dict) -> tuple[int, ...]:
        """(b t h w 3) of the clips of a batch, also of one of their latents. ValueError for a size that latents cannot have."""
        factor = 1 if self.vae is None else self.vae.factor
        for name in LATENTS:
            if "video" not in batch and name in batch:
                b, t, h, w, _ = batch[name].shape
                return b, t, h * factor, w * factor, 3
        if "video" not in batch and self.clip is None:
            raise ValueError(f'the size of the clips is unknown: give "noise" beside {sorted(batch)}, or set clip=(t, h, w)')
        b, t, h, w = (len(next(iter(batch.values()))), *self.clip) if "video" not in batch else batch["video"].shape[:4]
        if h % factor or w % factor:
            near = [max(1, round(n / factor)) * factor for n in (h, w)]
            raise ValueError(f"{h}x{w} pixels: the autoencoder takes multiples of {factor}, such as {near[0]}x{near[1]}")
        return b, t, h, w, 3

    def latent_shape(self, batch: dict) -> tuple[int, ...]:
        """(b t h w c) of the latents of a batch."""
        for name in LATENTS:
            if name in batch:
                return batch[name].shape
        shape = self.video_shape(batch)
        if self.vae is None:
            return shape
        encode = lambda x: self.vae.init_with_output(jax.random.key(0), x, method="encode")[0][0]
        return jax.eval_shape(encode, jax.ShapeDtypeStruct(shape, jnp.float32)).shape

    # A cache of latents (data/latents.py) ---------------------------------------------------------------------------

    def kept(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """What `data.latents.LatentRecord` says of clips such as `record`."""
        latent = self.latent_shape({"video": jnp.zeros((1, *record["video"].shape), jnp.uint8)})[1:]
        frames = max((self._shown(c, len(record["video"])) for c in self.conditioners), default=0)
        return dict(latent=latent, frames=frames, entries=sorted(set(record) - {"video"}))

    def _shown(self, conditioner: nn.Module, frames: int) -> int:
        """How many of a clip's first frames the conditioner may read."""
        reads = getattr(conditioner, "reads", ())
        return getattr(conditioner, "given", frames) if "video" in reads else int("image" in reads)

    def init_encoder(self, key: Array, clip: Sequence[int]) -> Params:
        """Parameters of what makes the latents of clips (t h w)."""
        return self.vae.init(key, jnp.zeros((1, *clip, 3)))["params"]

    def told_by(self, groups: Iterable[str]) -> dict[int, nn.Module]:
        """The conditioners, by number, whose features can be kept where `groups` are frozen: all of their towers are."""
        towers = {i: set(getattr(c, "towers", ())) for i, c in enumerate(self.conditioners)}
        return {i: self.conditioners[i] for i, names in towers.items() if names and names <= set(groups)}

    def init_features(self, key: Array, batch: dict, groups: Iterable[str]) -> tuple[Groups, dict[int, dict[str, Array]]]:
        """({tower: parameters}, {number of the conditioner: its features}) of those in `told_by`."""
        params: Groups = {}
        features = {}
        for i, conditioner in self.told_by(groups).items():
            features[i], variables = conditioner.init_with_output(key, batch, method="features")
            params |= variables["params"]
        return params, features

    def features(self, params: Groups, batch: dict, names: Iterable[str]) -> dict[str, Array]:
        """Of the conditioners that say those with these names."""
        saying = [c for c in self.conditioners if set(getattr(c, "entries", ())) & set(names)]
        found = [c.apply({"params": params}, batch, method="features") for c in saying]
        return {name: x for features in found for name, x in features.items()}

    def with_clip(self, clip: Sequence[int]) -> "Denoise":
        """The same for batches of latents of clips of this size (t h w)."""
        return dataclasses.replace(self, clip=tuple(clip))

    # Sampling -----------------------------------------------------------------------------------------------------

    def sample(self, params: Groups, batch: dict, key: Array) -> Float[Array, "b t h w 3"]:
        """Clips in [0, 1]. Pixels that "stay" are the autoencoder's copy of the video's, also in cells that are made anew for their others' sake, and
        near them: a decoder sees beyond a cell.
        """
        video = self.decode(params, self.sample_latents(params, batch, key))
        if "stays" not in batch:
            return video
        return jnp.where(jnp.asarray(batch["stays"])[..., None], self.decode(params, self.latents(params, batch, None)), video)

    def sample_latents(self, params: Groups, batch: dict, key: Array) -> Float[Array, "b t h w c"]:
        """Scaled latents. Frames that are "known" come out as they are, from the batch's "latents" or "video"."""
        noise_key, condition_key, step_key = jax.random.split(key, 3)
        batch, shape = self.with_known(batch), self.latent_shape(batch)
        noise = batch["noise"] if "noise" in batch else jax.random.normal(noise_key, shape)
        denoise = self.guided(params, batch, condition_key, shape[1])
        known = self.known_cells(batch, shape)
        clean = None if known is None else self.latents(params, batch, None)
        if clean is not None:
            in_place = self.noising is not None and self.noising.clean
            denoise = known_parts(denoise, clean, known, None if in_place else noise)
        levels = self.schedule.levels(self.sampling.steps)
        x = samplers.begin(noise, levels)
        if "known" in batch and (mixer := self.sampling.mixer) is not None:
            first = Level(*(a[0] for a in levels)) if mixer.level is None else self.schedule.level(jnp.asarray(mixer.level))
            x = mixer(clean, batch["known"], noise, first)
        x = samplers.sample(self.sampling.sampler, denoise, x, levels, step_key)
        # a schedule may end above sigma 0
        return x if clean is None else jnp.where(known, clean, x)

    def known_cells(self, batch: dict, shape: Sequence[int]) -> Bool[Array, "b t #h #w 1"] | None:
        """Which latents (b t h w c) come out as they are: of frames that are "known", and cells all of whose pixels "stay"."""
        known = batch["known"][..., None, None, None] if "known" in batch else None
        if "stays" not in batch:
            return known
        b, t, h, w, _ = shape
        stays = jnp.asarray(batch["stays"])
        cells = stays.reshape(b, t, h, stays.shape[2] // h, w, stays.shape[3] // w).all(axis=(3, 5))[..., None]
        return cells if known is None else known | cells

    @property
    def fills_gaps(self) -> bool:
        """Whether frames between given ones are made."""
        return self.noising is not None and not self.noising.predicts

    def gap_starts(self, length: int, frames: int) -> range:
        """Where a gap of this length may begin in clips of `frames`; ValueError where this model fills none of it."""
        if self.noising is None:
            raise ValueError(f"a gap of {length} frames: this model is given no frames, and fills no gaps")
        starts = self.noising.starts(length, frames)
        if self.sampling.mixer is not None:
            self.sampling.mixer.check(mavin.between(starts[0], starts[0] + length, frames))
        return starts

    def with_known(self, batch: dict) -> dict:
        """The batch with "known" as to sample, where it does not say, and with what is told of the gap."""
        if self.noising is not None and "known" not in batch:
            b, t = self.video_shape(batch)[:2]
            usual = self.noising.usual(t)
            if self.sampling.mixer is not None:
                self.sampling.mixer.check(usual)
            batch = {**batch, "known": jnp.broadcast_to(jnp.asarray(usual), (b, t))}
        return with_gap(batch)

    def guided(self, params: Groups, batch: dict, key: Array, frames: int) -> samplers.Guided:
        """The denoiser (x, level) -> x0 that the sampler asks: `Sampling.guidance` and `wraps`."""
        rows = self.sampling.guidance
        b = len(next(iter(batch.values())))
        kept = self.kept_by_task(batch)
        hidden = [kept | {n: jnp.zeros(b, bool) for n in names} for names, _ in rows] + [kept]
        # one key: every branch sees the same noise on its image
        conditions = [self.condition(params, batch, keep, key, frames) for keep in hidden]
        weights = [w if isinstance(w, int | float) else ramp(*w, frames) for _, w in rows]
        return reduce(lambda d, wrap: wrap(d), self.sampling.wraps, chain(self.denoiser(params), conditions, weights))

    def kept_by_task(self, batch: dict) -> dict[str, Bool[Array, "b"]]:
        """Which conditions the task of each clip leaves; {} where the batch names no tasks."""
        if "task" not in batch:
            return {}
        hides = {n: [n in names for names in self.tasks.values()] for names in self.tasks.values() for n in names}
        return {n: ~jnp.asarray(rows)[batch["task"]] for n, rows in hides.items()}

    def with_decoding(self, **options) -> "Denoise":
        """The same with other fields of `Sampling`. A number as `guidance` is the weight of the last row, the one that
        hides least; where weights rise over the frames, that of the last frame; several are those of all rows, None as it was. A model that
        is sampled without guidance is led away from what most is hidden of in training (`drop`); ValueError where nothing is.
        """
        if unknown := set(options) - {f.name for f in dataclasses.fields(Sampling)}:
            raise ValueError(f"{', '.join(sorted(unknown))}: of masked transformers; a diffusion model takes steps and guidance")
        if options.get("guidance") is not None:
            options["guidance"] = self._guided_by(options["guidance"])
        return dataclasses.replace(self, sampling=dataclasses.replace(self.sampling, **options))

    def _guided_by(self, guidance: float | Sequence[float | None]) -> tuple:
        """The rows of guidance with other weights."""
        if not self.sampling.guidance and not self.drop:
            raise ValueError(
                f"guidance={guidance}: this model was trained without hiding its conditions (objective.drop is empty), so that there is nothing "
                "to lead away from: leave it out"
            )
        most = max(self.drop, key=lambda row: len(row[0]), default=((), 0))[0]
        rows = self.sampling.guidance or ((most, 1.0),)
        numbers = [*[None] * (len(rows) - 1), guidance] if isinstance(guidance, int | float) else list(guidance)
        if len(numbers) != len(rows):
            raise ValueError(f"{len(numbers)} weights of guidance for {len(rows)} rows: this model is guided by {[list(names) for names, _ in rows]}")
        other = lambda weight, n: weight if n is None else float(n) if isinstance(weight, int | float) else (weight[0], float(n))
        return tuple((names, other(weight, n)) for (names, weight), n in zip(rows, numbers, strict=True))

    # Tasks, as `generator.py` wants them --------------------------------------------------------------------------

    classes = 0

    @property
    def overlap(self) -> int:
        """The windows of a long video share the frames that one begins with."""
        first = max((getattr(c, "given", 1) for c in self.conditioners), default=1)
        return self.carried or getattr(self.noising, "frames", None) or first

    @property
    def labelled(self) -> tuple[bool, ...]:
        """No task is given a class."""
        return (False,) * len(self.tasks)

    def told(self, what: str) -> tuple[bool, ...]:
        """Which of the tasks are given the "image" (a picture, or frames of a video), or the "text"."""
        frames = what == "image" and self.noising is not None
        return tuple(frames or what in self._reads(hidden) for hidden in self.tasks.values())

    @property
    def blind(self) -> tuple[bool, ...]:
        return tuple(not image for image in self.told("image"))

    @property
    def predicts(self) -> tuple[bool, ...]:
        """Those that are given the first frame can go on from the last one; with `carried` all can."""
        return tuple(bool(self.carried) or (image and getattr(self.noising, "predicts", True)) for image in self.told("image"))

    def given_frames(self, frames: int) -> int:
        """How many frames of a video are read."""
        if self.noising is not None:
            return int(np.flatnonzero(self.noising.usual(frames))[-1]) + 1
        return self.overlap if any(self.told("image")) else 0

    def with_tasks(self, tasks: Sequence[str]) -> "Denoise":
        if unknown := [t for t in tasks if t not in self.tasks]:
            raise ValueError(f"task {', '.join(unknown)} is unknown: this model has {', '.join(self.tasks)}")
        return dataclasses.replace(self, tasks={t: self.tasks[t] for t in tasks})

    def continuation(self, overlap: int) -> "Denoise":
        if self.carried:
            return dataclasses.replace(self, noising=mavin.First(overlap, clean=False), carried=0)
        if overlap != self.overlap:
            frames = "one frame" if self.overlap == 1 else f"{self.overlap} frames"
            raise ValueError(f"overlap={overlap}: this model is told {frames}, so windows share {self.overlap}")
        return self

    def condition_video(self, batch: dict) -> tuple[Float[Array, "b t h w 3"], Bool[Array, "b t h w 1"]]:
        """The first frames that are given, the last of them standing still, or black; with `noising` the known frames, and black between
        them; of an entity its pictures. And which pixels are given.
        """
        video = scale(batch["video"])
        if "entities" in self._reads():
            pictures = jnp.where(batch["entity_valid"][..., None, None, None], scale(batch["entities"]), 0.0)
            stays = batch.get("stays", jnp.zeros(video.shape[:-1], bool))
            return jax.image.resize(pictures, video.shape, "linear"), stays[..., None]
        if self.noising is not None:
            given = self.with_known(batch)["known"][..., None, None, None]
            return jnp.where(given, video, 0.0), jnp.broadcast_to(given, (*video.shape[:-1], 1))
        image = jnp.asarray(self.predicts)[batch["task"]][:, None, None, None, None]
        frames = jnp.arange(video.shape[1])
        given = jnp.broadcast_to(image & (frames < self.overlap)[:, None, None, None], (*video.shape[:-1], 1))
        return jnp.where(image, video[:, jnp.minimum(frames, self.overlap - 1)], 0.0), given


def with_gap(batch: dict) -> dict:
    """The batch, and where frames of it are known, what is told of the gap between them."""
    return {**batch, **mavin.describe(batch["known"])} if "known" in batch else batch


def join(conditions: Sequence[Condition], frames: int) -> Condition:
    """All that conditioners say; `concat` for each of `frames` frames, along the channels in order. ValueError where two
    give one name, or `concat` is of another number of frames, and not of one that stands for all.
    """
    merged: dict[str, dict] = {"tokens": {}, "masks": {}, "scalars": {}}
    for condition in conditions:
        for field, values in merged.items():
            new = getattr(condition, field)
            if twice := sorted(set(values) & set(new)):
                raise ValueError(f"two conditioners give the {field} {twice}: leave one out, or rename it")
            values.update(new)
    concat = [c.concat for c in conditions if c.concat is not None]
    if others := [x.shape[1] for x in concat if x.shape[1] not in (1, frames)]:
        raise ValueError(f"pictures of {others[0]} frames are joined to a clip of {frames}: give one for each frame, or one for all")
    concat = [jnp.broadcast_to(x, (len(x), frames, *x.shape[2:])) for x in concat]
    return Condition(**merged, concat=jnp.concatenate(concat, axis=-1) if concat else None)
