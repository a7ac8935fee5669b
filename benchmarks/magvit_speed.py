"""Seconds and GFLOP/s of MAGVIT-B on one 16x128x128 clip: encode, decode, transformer, 12-step generation; the matmul
peak in the same run.

    python benchmarks/magvit_speed.py --out=benchmarks/results/magvit_speed_cpu.json [--repeats=5] [--dtype=float32]

Weights are random: time does not depend on them. FLOPs are counted analytically (1 multiply-add = 2; convolutions and
matrix products only, taps on padding included), the convention of the published figures. Every figure is the best of
`repeats`, interleaved, after compilation.
"""

import argparse
import datetime
import json
import pathlib
import platform
import subprocess
import time

import jax
import jax.numpy as jnp

import magvid
from magvid.masked.decode import decode
from magvid.models.quantizers import VQ
from magvid.models.tokenizer import Tokenizer
from magvid.models.transformer import Transformer
from magvid.models.vq3d import Decoder, Encoder

GFLOP = {"encode": 378.5, "decode": 739.3, "transformer": 216.2}  # of one clip; README of this folder
GFLOP["generate"] = 12 * GFLOP["transformer"] + GFLOP["decode"]
# seconds of the official code on two such cores
OFFICIAL = {"encode": 4.0, "decode": 6.7, "transformer": 0.94, "generate": 18.0}
SIDE = 2048  # of the matrices that measure the peak


def parts(dtype: str | None):
    """{name: (compiled function of no argument, compile seconds)}."""
    tokenizer = Tokenizer(Encoder(dtype=dtype), VQ(), Decoder(dtype=dtype))
    model = Transformer(1041, 1026, dtype=dtype)
    video = jax.random.uniform(jax.random.key(0), (1, 16, 128, 128, 3))
    weights = jax.jit(tokenizer.init)(jax.random.key(1), video)
    bert = jax.jit(model.init)(jax.random.key(2), jnp.zeros((1, 1026), jnp.int32))
    ids = jnp.zeros((1, 4, 16, 16), jnp.int32)
    prefix = jnp.full((1, 2), 1030)

    def logits(bert, ids):
        found = model.apply(bert, jnp.concatenate([prefix, ids.reshape(1, -1)], axis=1))
        return found[:, 2:, :1024].reshape(*ids.shape, 1024)

    def encode(weights):
        return tokenizer.apply(weights, video, method="encode_ids")

    def to_video(weights, ids):
        return tokenizer.apply(weights, ids, method="ids_to_video")

    def generate(bert, weights, key):
        tokens, _ = decode(lambda i, _: logits(bert, i), ids, ids > 0, key, mask_id=1040)
        return to_video(weights, tokens)

    square = jax.random.normal(jax.random.key(3), (SIDE, SIDE))
    calls = {
        "matmul": (lambda a: a @ a, (square,)),
        "encode": (encode, (weights,)),
        "decode": (to_video, (weights, ids)),
        "transformer": (logits, (bert, ids)),
        "generate": (generate, (bert, weights, jax.random.key(4))),
    }
    compiled = {}
    for name, (f, arguments) in calls.items():
        start = time.perf_counter()
        program = jax.jit(f).lower(*arguments).compile()
        compiled[name] = (lambda program=program, arguments=arguments: program(*arguments)), time.perf_counter() - start
        print(f"{name}: compiled in {compiled[name][1]:.1f} s", flush=True)
    return compiled


def measure(repeats: int, dtype: str | None) -> dict:
    compiled = parts(dtype)
    best = dict.fromkeys(compiled, float("inf"))
    for _ in range(repeats):
        for name, (run, _) in compiled.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            best[name] = min(best[name], time.perf_counter() - start)
    peak = 2 * SIDE**3 / best["matmul"] / 1e9
    rows = {"matmul_peak_gflops": peak}
    for name, gflop in GFLOP.items():
        rate = gflop / best[name]
        rows[name] = dict(
            seconds=best[name],
            gflops=rate,
            share_of_peak=rate / peak,
            compile_seconds=compiled[name][1],
            official_seconds=OFFICIAL[name],
        )
    return rows


def machine() -> dict:
    here = pathlib.Path(__file__).parent
    git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=here)
    device = jax.devices()[0]
    versions = dict(magvid=magvid.__version__, jax=jax.__version__, python=platform.python_version())
    places = dict(commit=git.stdout.strip(), device=f"{len(jax.devices())} x {device.device_kind}")
    return dict(date=str(datetime.date.today()), **places, **versions)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    args = parser.parse_args()
    result = machine() | dict(dtype=args.dtype) | measure(args.repeats, None if args.dtype == "float32" else args.dtype)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
