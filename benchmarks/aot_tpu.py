"""Compile a full-size fine-tuning step of SVD, ModelScope or AID for a TPU topology, without TPUs, and say what a chip holds.

    pip install -e ".[tpu]"
    JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 python benchmarks/aot_tpu.py --config=configs/svd.py:tune=full --topology=v5p:2x2x4

The frozen networks are described by their published sizes: no weights are read. Prints one line of JSON. SVD took 36 minutes on two
cores beside other work, ModelScope 38; each was seen to hold 14 GB of memory.
"""

import importlib
import json
import os
import pathlib
import sys
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # else libtpu asks the cloud what machine this is
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from configs import latent
from magvid import job, optim, sharding, state
from magvid.build import build
from magvid.flags import Flag, Program, guarded, leave, parse, program_help

PROGRAM = Program(
    "python benchmarks/aot_tpu.py",
    "Compile a fine-tuning step of a public pipeline for a TPU topology, and say what a chip holds.",
    [
        Flag("config", "str", "configs/svd.py:tune=full", "FILE.py[:ARG]", "svd.py, modelscope.py or sd.py with tune, or aid_*.py"),
        Flag("topology", "str", "v5p:2x2x4", "NAME", "such as v5e:4x4, v5p:4x4x4, v6e:16x16"),
        Flag("chips", "int", 0, "N", "of the topology; default: all", 0),
        Flag("batch", "int", 0, "N", "clips; default: one per chip", 0),
        Flag("effort", "float", -1.0, "X", "of the compiler, -1 to 1; 0 is that of training, and takes longer"),
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


def compile_step(config: dict, devices) -> dict:
    objective = build(with_specs(config["objective"]))
    mesh = sharding.make_mesh(config["mesh"], devices)
    shards = sharding.data_shards(mesh)
    b = config["batch"] = config["batch"] or shards
    parts = -(-b // shards // (config["microbatch"] or b))  # whose gradients are averaged
    ids = lambda *texts: jax.ShapeDtypeStruct((b, *texts, 77), jnp.int32)
    batch = {"video": jax.ShapeDtypeStruct((b, *objective.clip, 3), jnp.uint8), "text_ids": ids(), "null_ids": ids(), "state_ids": ids(4)}
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
    return {
        "batch": b,
        "microbatches": parts,
        "parameters": {g: sum(x.size for x in jax.tree.leaves(t)) for g, t in shapes.items()},
        "arguments_gb": memory.argument_size_in_bytes / 1e9,
        "temporary_gb": memory.temp_size_in_bytes / 1e9,
        "tflop_per_chip": cost.get("flops", 0) / 1e12,
        "collectives": {name: text.count(f" {name}") for name in collectives},
        "seconds_lower": round(lowered_at - begin, 1),
        "seconds_compile": round(time.monotonic() - lowered_at, 1),
    }


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
    jax.config.update("jax_exec_time_optimization_effort", options.effort)
    devices = topologies.get_topology_desc(topology_name=options.topology, platform="tpu").devices
    devices = devices[: options.chips or None]
    found = compile_step(config, devices)
    print(json.dumps(dict(config=options.config, topology=options.topology, effort=options.effort, chips=len(devices), jax=jax.__version__, **found)))


if __name__ == "__main__":
    leave(guarded("aot_tpu", sys.argv[1:], main))
