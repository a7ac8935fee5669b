"""Steps per second of the training step of a masked transformer on videos, whose tokens are computed in every step, and
on cached tokens; both in one run, interleaved, with the same weights and clips.

    python benchmarks/token_cache.py --out=benchmarks/results/token_cache_cpu.json [--sizes=sprites,B] [--repeats=5]

sprites: configs/commit_sprites.py:budget=quick, batches of 8. B: configs/commit_ssv2.py, MAGVIT-B on ten tasks and
16x128x128 pixels, batches of --batch of noise. Weights are random: time does not depend on them. Also measured: the speed
of `magvid encode`, which the cache costs once, and of reading. A step's time is the best of `repeats`.
"""

import argparse
import json
import pathlib
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from benchmarks.magvit_speed import machine  # noqa: E402
from configs import commit_sprites, commit_ssv2, vq3d_sprites, vq3d_ssv2  # noqa: E402
from magvid import encode, runs, sharding  # noqa: E402
from magvid.build import build  # noqa: E402
from magvid.checkpoints import Checkpoints  # noqa: E402
from magvid.job import Job, check_config  # noqa: E402
from magvid.state import init_state  # noqa: E402


class Noise:
    """`clips` videos of noise, drawn once: reading them costs nothing."""

    def __init__(self, clips: int, frames: int, height: int, width: int):
        rng = np.random.default_rng(0)
        self.videos = rng.integers(0, 256, (clips, frames, height, width, 3)).astype(np.uint8)

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, i: int) -> dict:
        return {"video": self.videos[i], "label": np.int32(0)}


def configs(size: str, batch: int) -> tuple[dict, dict]:
    """(tokenizer's config, transformer's config); MAGVIT-B reads noise."""
    if size == "sprites":
        return check_config(vq3d_sprites.get_config()), check_config(commit_sprites.get_config("clips=64"))
    first = check_config(vq3d_ssv2.get_config("perceptual=0,inflate=0"))
    second = check_config(commit_ssv2.get_config()) | dict(batch=batch)
    noise = dict(target="benchmarks.token_cache:Noise", clips=2 * batch, frames=16, height=128, width=128)
    for config in (first, second):
        config["data"] = dict(train=dict(source=noise, transforms=config["data"]["train"]["transforms"][-1:]))
    return first, second


def tokenizer_run(config: dict, folder: pathlib.Path) -> None:
    """A run folder with random weights, which nobody has trained."""
    tokenizer, source = build(config["objective"]["tokenizer"]), build(config["data"]["train"]["source"])
    clip = np.zeros((1, *source[0]["video"].shape), np.float32)
    shapes = jax.eval_shape(tokenizer.init, jax.random.key(0), clip)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(0.05 * rng.standard_normal(x.shape, np.float32)), shapes)
    checkpoints = Checkpoints(folder / "checkpoints", write=True)
    checkpoints.save(1, init_state({"tokenizer": params}, {}, {}, jax.random.key(0), {}), {})
    checkpoints.close()
    runs.write_json(folder / runs.CONFIG, config)


class Step:
    """The training step of a config on one batch, and its loader."""

    def __init__(self, config: dict):
        job = Job.from_config(config, trust=True)
        self.loader = job.loader()
        batch = next(self.loader)
        prepared = job.prepare(batch)
        self.state, self.batch = prepared.init(), sharding.global_batch(batch, job.mesh)
        self.bytes = sum(v.nbytes for v in sharding.numeric(batch).values())
        start = time.perf_counter()
        self.program = job.step(prepared).lower(self.state, self.batch).compile()
        self.compile_seconds = time.perf_counter() - start

    def seconds(self) -> float:
        start = time.perf_counter()
        self.state, metrics, _ = self.program(self.state, self.batch)
        jax.block_until_ready((self.state, metrics))
        return time.perf_counter() - start

    def reading_seconds(self, batches: int = 20) -> float:
        start = time.perf_counter()
        for _ in range(batches):
            next(self.loader)
        return (time.perf_counter() - start) / batches


def measure(size: str, repeats: int, batch: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        first, second = configs(size, batch)
        tokenizer_run(first, folder / "tokenizer")
        second["objective"]["tokenizer"] = dict(run=str(folder / "tokenizer"), weights="params")
        stamps = []  # after each batch; the first is compiled
        stamp = lambda *_: stamps.append(time.perf_counter())
        record = encode.encode(second, folder / "tokens", trust=True, on_progress=stamp)
        encoded = second["batch"] * (len(stamps) - 1) / (stamps[-1] - stamps[0])
        plain = Step(second)
        second["data"]["train"]["cache"] = str(folder / "tokens")
        cached = Step(second)
        best = {"videos": float("inf"), "tokens": float("inf")}
        for _ in range(repeats + 1):  # the first warms up
            for name, step in (("videos", plain), ("tokens", cached)):
                best[name] = min(best[name], step.seconds())
        result = dict(batch=second["batch"], tasks=len(record.tasks), encoded_clips_per_second=encoded)
        for name, step in (("videos", plain), ("tokens", cached)):
            result[name] = dict(
                steps_per_second=1 / best[name],
                reading_seconds=step.reading_seconds(),
                batch_bytes=step.bytes,
                compile_seconds=step.compile_seconds,
            )
            step.loader.close()
        return result | dict(speed_up=best["videos"] / best["tokens"], bytes_per_row=sum(record.sizes) / record.rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--sizes", default="sprites,B")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=1, help="of MAGVIT-B")
    args = parser.parse_args()
    result = machine() | {size: measure(size, args.repeats, args.batch) for size in args.sizes.split(",")}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
