"""Compile a full-size fine-tuning step of SVD, ModelScope, AID or MagDiff for a TPU topology, without TPUs, and say what a chip holds; or for the
accelerator of this machine, and time it there.

    pip install -e ".[tpu]"
    JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 python benchmarks/aot_tpu.py --config=configs/svd.py:tune=full --topology=v5p:2x2x4
    python benchmarks/aot_tpu.py --config=configs/aid_bridge.py --topology=local --batch=1

The frozen networks are described by their published sizes: no weights are read. Prints one line of JSON. SVD took 36 minutes on two
cores beside other work, ModelScope 38; each was seen to hold 14 GB of memory.
"""

import importlib
import json
import os
import pathlib
import sys
import time

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # else libtpu asks the cloud what machine this is
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

from configs import latent
from magvid import job, optim, sharding, state
from magvid.build import build
from magvid.flags import Flag, Program, guarded, leave, parse, program_help

PROGRAM = Program(
    "python benchmarks/aot_tpu.py",
    "Compile a fine-tuning step of a public pipeline for a TPU topology, and say what a chip holds; local: time it on this machine.",
    [
        Flag("config", "str", "configs/svd.py:tune=full", "FILE.py[:ARG]", "svd.py, modelscope.py or sd.py with tune, aid_*.py or magdiff_*.py"),
        Flag("topology", "str", "v5p:2x2x4", "NAME", "such as v5e:4x4, v5p:4x4x4, v6e:16x16; local: this machine"),
        Flag("chips", "int", 0, "N", "of the topology; default: all", 0),
        Flag("batch", "int", 0, "N", "clips; default: one per chip", 0),
        Flag("effort", "float", -1.0, "X", "of the compiler, -1 to 1; 0 is that of training, and takes longer"),
        Flag("steps", "int", 5, "N", "timed on this machine, after a first", 1),
    ],
    ["", "--config=configs/modelscope.py:tune=full --topology=v5e:4x4", "--config=configs/aid_bridge.py --topology=v5p:2x2x1 --chips=1"],
)


def with_specs(spec):
    """References to converted weights, weights/PRESET/PART, replaced by the published networks' specs."""
    if isinstance(spec, dict):
        if "run" in spec:
            preset, part = spec["run"].split("/")[-2:]
            return latent.published(part, "sd21" if preset == "sd21v" else preset) | spec["fields"]
        return {k: with_specs(v) for k, v in spec.items()}
    return [with_specs(v) for v in spec] if isinstance(spec, list) else spec


def compile_step(config: dict, devices, steps: int = 0) -> dict:
    """What the compiler says; with `steps` also what the devices do."""
    objective = build(with_specs(config["objective"]))
    mesh = sharding.make_mesh(config["mesh"], devices)
    shards = sharding.data_shards(mesh)
    b = config["batch"] = config["batch"] or shards
    parts = -(-b // shards // (config["microbatch"] or b))  # whose gradients are averaged
    of = lambda *shape, dtype=jnp.int32: jax.ShapeDtypeStruct((b, *shape), dtype)
    batch = {"video": of(*objective.clip, 3, dtype=jnp.uint8), "text_ids": of(77), "null_ids": of(77), "state_ids": of(4, 77)}
    larger = [side * 3 // 2 for side in objective.clip[1:]]  # MagDiff's pictures
    frames = objective.clip[0]
    batch |= {"entities": of(frames, *larger, 3, dtype=jnp.uint8), "entity_valid": of(frames, dtype=jnp.bool_)}
    batch = {k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.batch_sharding(mesh)) for k, x in batch.items()}
    shapes = jax.eval_shape(objective.init, jax.random.key(0), batch)
    params = {g: shapes[g] for g in config["optim"]}
    frozen = {g: shapes[g] for g in shapes if g not in params}
    optimisers = {g: optim.make(spec, params[g], config["steps"], g) for g, spec in config["optim"].items()}
    averaged = tuple(params) if config["ema"] else ()
    make = lambda params, frozen: state.init_state(params, frozen, {}, jax.random.key(0), optimisers, averaged)
    like = jax.eval_shape(make, params, frozen)
    places = sharding.state_shardings(like, config["sharding"], mesh)
    like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), like, places)
    step = state.make_step(objective, optimisers, microbatches=parts, unroll=False, ema=config["ema"], dtype=config["dtype"])
    begin = time.monotonic()
    with jax.set_mesh(mesh):
        whole = sharding.replicated(mesh)
        lowered = jax.jit(step, donate_argnums=0, out_shardings=(places, whole, whole)).lower(like, batch)
    lowered_at = time.monotonic()
    compiled = lowered.compile()
    memory, cost, text = compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text()
    collectives = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
    compiled_at = time.monotonic()
    measured = time_steps(compiled, like, batch, mesh, steps) if steps else {}
    return {
        "batch": b,
        "microbatches": parts,
        "parameters": {g: sum(x.size for x in jax.tree.leaves(t)) for g, t in shapes.items()},
        "arguments_gb": memory.argument_size_in_bytes / 1e9,
        "temporary_gb": memory.temp_size_in_bytes / 1e9,
        "tflop_per_chip": cost.get("flops", 0) / 1e12,
        "collectives": {name: text.count(f" {name}") for name in collectives},
        "seconds_lower": round(lowered_at - begin, 1),
        "seconds_compile": round(compiled_at - lowered_at, 1),
        **measured,
    }


def time_steps(compiled, like, batch, mesh, steps: int) -> dict:
    """Seconds of a step, the best and all, and the most bytes that a device held. Weights and videos are random: the numbers that come out mean
    nothing, but no product is of zeros.
    """
    rng = np.random.default_rng(0)

    def some(path, x):
        if jnp.issubdtype(x.dtype, jnp.floating):
            drawn = jax.random.normal(jax.random.key(x.size), x.shape, x.dtype) * 0.02
            return abs(drawn) if ".nu" in jax.tree_util.keystr(path) else drawn  # Adam takes the root
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        return rng.integers(0, 2 if x.dtype == bool else 100, x.shape).astype(x.dtype)

    fill = lambda tree: jax.tree_util.tree_map_with_path(lambda path, x: jax.device_put(some(path, x), x.sharding), tree)
    with jax.set_mesh(mesh):
        now, batch, seconds = fill(like), fill(batch), []
        for _ in range(1 + steps):
            begin = time.monotonic()
            now, *rest = compiled(now, batch)
            jax.block_until_ready((now, rest))
            seconds.append(time.monotonic() - begin)
    held = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) / 1e9 for device in mesh.devices.flat]
    return {"seconds_per_step": min(seconds[1:]), "seconds": [round(x, 4) for x in seconds], "peak_gb": max(held)}


def main(argv: list[str]) -> None:
    if {"--help", "-h"} & set(argv):
        print(program_help(PROGRAM))
        return
    options = parse(PROGRAM, argv, need="")
    path, _, argument = options.config.partition(":")
    name = pathlib.Path(path).stem
    config = job.check_config(importlib.import_module(f"configs.{name}").get_config(argument))
    config["batch"] = options.batch
    if not config["optim"]:
        raise ValueError(f"{options.config} trains nothing: give tune=full, temporal or lora")
    if here := options.topology == "local":
        devices = jax.devices()
    else:
        jax.config.update("jax_platforms", "cpu")  # nothing runs
        jax.config.update("jax_exec_time_optimization_effort", options.effort)
        devices = topologies.get_topology_desc(topology_name=options.topology, platform="tpu").devices
    devices = devices[: options.chips or None]
    found = compile_step(config, devices, options.steps if here else 0)
    effort = {} if here else dict(effort=options.effort)
    print(json.dumps(dict(config=options.config, topology=devices[0].device_kind if here else options.topology, **effort, chips=len(devices), jax=jax.__version__, **found)))


if __name__ == "__main__":
    leave(guarded("aot_tpu", sys.argv[1:], main))
