"""Runs that train in seconds, made once per session by the command line; and an objective that knows the answer."""

import dataclasses
import functools
import pathlib
import tempfile

import jax
import jax.numpy as jnp

from magvid.__main__ import main
from magvid.masked.tasks import FirstFrames, condition_videos, find_task, nothing, pixel_masks
from magvid.objectives.vqgan import scale
from magvid.runs import Run, open_run
from magvid.train import train

TINY = pathlib.Path(__file__).with_name("tiny_config.py")
KEPT = []  # temporary folders, removed when the session ends


@functools.cache
def folder() -> pathlib.Path:
    KEPT.append(tempfile.TemporaryDirectory(prefix="magvid_tiny_"))
    return pathlib.Path(KEPT[0].name)


@functools.cache
def tokenizer_run() -> pathlib.Path:
    assert main(["train", f"--config={TINY}:tokenizer", f"--workdir={folder() / 'vq'}", "--config.eval_every=2"]) == 0
    return folder() / "vq"


@functools.cache
def masked_run() -> pathlib.Path:
    command = ["train", f"--config={TINY}:masked,{tokenizer_run()}", f"--workdir={folder() / 'masked'}"]
    assert main(command) == 0
    return folder() / "masked"


@dataclasses.dataclass(frozen=True)
class Echo:
    """Generates condition + mix * (real - condition) + noise * n, n normal; reconstructs the real video."""

    tasks: tuple = ("FP", "CG")
    mix: float = 0.5
    noise: float = 0.0
    classes: int = 18
    labels: bool = False
    overlap: int = 2

    @property
    def labelled(self):
        return tuple(self.labels and find_task(t).class_cond for t in self.tasks)

    @property
    def blind(self):
        return tuple(find_task(t).region is nothing for t in self.tasks)

    def init(self, key, batch):
        return {"model": {"kernel": jnp.ones(3)}}

    def loss(self, params, extra, batch, key, step, train):
        return {"model": jnp.sum(params["model"]["kernel"] ** 2)}, ({}, extra)

    def with_tasks(self, tasks):
        return dataclasses.replace(self, tasks=tuple(tasks))

    def condition_video(self, batch):
        rows, video = [find_task(t) for t in self.tasks], scale(batch["video"])
        given = jnp.asarray(pixel_masks(rows, video.shape[1:4]))[batch["task"]]
        return condition_videos(rows, video, batch["task"]), given[..., None]

    @property
    def predicts(self):
        return tuple(isinstance(find_task(t).region, FirstFrames) for t in self.tasks)

    def given_frames(self, frames):
        rows = [find_task(t).region for t in self.tasks]
        return max(r.frames if isinstance(r, FirstFrames) else frames for r in rows)

    def continuation(self, overlap):
        kind = lambda t: t.rstrip("0123456789")
        return self.with_tasks(f"{kind(t)}{overlap}" if p else t for t, p in zip(self.tasks, self.predicts, strict=True))

    def reconstruct(self, params, batch):
        return scale(batch["video"])

    def sample(self, params, batch, key):
        condition, _ = self.condition_video(batch)
        video = (
            condition
            + self.mix * (scale(batch["video"]) - condition)
            + self.noise * jax.random.normal(key, condition.shape)
        )
        return jnp.clip(video, 0, 1)


@dataclasses.dataclass(frozen=True)
class Ramp(Echo):
    """Generates what every frame of its world is: one grey level above the frame before it, whatever is given first.
    `flicker` adds to frame i of a window i levels, and a random number below `noise` to its last frame.
    """

    tasks: tuple = ("FP", "CG")
    flicker: int = 0

    def sample(self, params, batch, key):
        condition, _ = self.condition_video(batch)
        i = jnp.arange(condition.shape[1])[:, None, None, None]
        last = jnp.floor(self.noise * jax.random.uniform(key)) * (i == condition.shape[1] - 1)
        return condition[:, :1] + (i * (1 + self.flicker) + last) / 255


@functools.cache
def echo_run(mix: float = 0.5, noise: float = 0.0, labels: bool = False) -> Run:
    import tiny_config

    data = {"source": tiny_config.sprites("validation"), "transforms": []}
    config = dict(
        steps=1,
        batch=8,
        objective=dict(target="tiny_runs:Echo", mix=mix, noise=noise, labels=labels),
        data=dict(train=data, eval=data),
        optim=dict(model=dict(rules=[[".*", dict(peak=1e-3)]])),
    )
    path = folder() / f"echo_{mix}_{noise}_{labels}"
    train(config, path)
    return open_run(path, trust=True)
