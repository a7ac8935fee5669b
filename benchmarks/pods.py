"""Every full-size training step of the configs compiled for TPU pods, without TPUs, one after the other; and benchmarks/pods.md out of what came of it.

    pip install -e ".[tpu]"
    JAX_PLATFORMS=cpu python benchmarks/pods.py                    # goes on where it was stopped: hours, minutes each
    JAX_PLATFORMS=cpu python benchmarks/pods.py --only="table: .*AID"
    python benchmarks/pods.py --page                               # pods.md alone

Three parts. table: the largest models on a v5e-256, v5p-128 and v6e-256, MAGVIT's with each mesh of MESHES. curves: MAGVIT's two L models on 16 to 256 chips of
a v5e, the same batch of 256 clips. programs: each distinct program (by the hash of its lowered text; what a schedule's numbers are does not make one) on the
first pod of PODS on which it fits; U-Nets, a clip on each chip, first on the eight chips of SMALL: fewer are compiled for sooner (AID: 8 minutes for one, 17 for 16), and each holds more of the weights. A step that would take more than HOPELESS times a chip's memory by the
estimate of `magvid explain` is not given to the compiler. Frozen networks are described by their published sizes; no weights and no data are read. Each row says of which commit and
versions it is; one whose compiler broke (which is not one that does not fit) is tried again.
"""

import dataclasses
import importlib
import importlib.metadata
import json
import multiprocessing
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from magvid.flags import Flag, Program, guarded, leave, load_config, parse, program_help, use_huge_pages

HERE = pathlib.Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "results" / "pods.json", HERE / "pods.md"
PROGRAM = Program(
    "python benchmarks/pods.py",
    "Compile the configs' training steps for TPU pods, resumably, and write benchmarks/pods.md.",
    [
        Flag("only", "str", "", "REGEX", "rows in whose name it is found, such as table, curves, programs, AID"),
        Flag("list", "bool", False, "", "say which rows there are, and which are done"),
        Flag("page", "bool", False, "", "write pods.md of what is there, and compile nothing"),
        Flag("effort", "float", -1.0, "X", "of the compiler, -1 to 1; 0 is that of training, and takes longer"),
    ],
    ["", '--only="curves"'],
)
PODS = {"v5e-256": "v5e:16x16", "v5p-128": "v5p:4x4x4", "v6e-256": "v6e:16x16"}  # a v5p's number is of its cores, two on a chip
SMALL = "v5p:2x2x2"
HOPELESS = 1.5  # a U-Net takes the compiler half an hour; estimates were -33 to +40 % from what it said
MESHES = {
    "data": dict(mesh={"data": -1}, sharding=[[".*", None]]),
    "fsdp": dict(mesh={"fsdp": -1}, sharding=[[".*", "fsdp"]]),
}
MODELS = {  # name: (config, argument, clips per chip; 0: the config's batch)
    "MAGVIT 3D-VQ-L": ("vq3d_ucf101", "size=L", 0),
    "MAGVIT transformer L": ("commit_ucf101", "size=L", 0),
    "Stable Video Diffusion, all of it": ("svd", "tune=full", 1),
    "AID": ("aid_bridge", "", 1),
    "MAVIN": ("mavin_horse", "", 1),
    "MagDiff": ("magdiff_pexels", "", 1),
}
CURVE = {16: "v5e:4x4", 32: "v5e:4x8", 64: "v5e:8x8", 128: "v5e:8x16", 256: "v5e:16x16"}
SIZES = ("size=B", "size=L", "size=H")
MAGVIT = ("bair", "k600", "nuscenes", "objectron", "ssv2", "ucf101", "web")
TABLES = ("table5_latent", "table5_prefix", "table5_commit_mask", "table5_commit_mask_recons", "table5_commit")
AID = ("", "mcond=none", "branches=upper", "branches=lower", "states=instruction", "spatial=0", "short=0", "long=0", "mcond=decoupled")
MAGDIFF = ("", "apa=joint", "apa=none", "rep=256", "rep=none", "segmented=0", "refs=1", "tune=full")


class Row(NamedTuple):
    """`fields` of the config are replaced."""

    name: str
    config: str
    argument: str
    topology: str
    fields: Mapping[str, Any]
    per_chip: int = 0


def rows() -> Iterator[Row]:
    """All, the most asked for first."""
    for model in list(MODELS)[:2]:
        config, argument, _ = MODELS[model]
        for chips, topology in CURVE.items():
            yield Row(f"curves: {model}, {chips} chips", config, argument, topology, dict(microbatch=1))
    for model, (config, argument, per_chip) in MODELS.items():
        for pod, topology in PODS.items():
            # the others' configs spread all weights over all chips: with the axis "fsdp" the text is the same but for its name (compared for sd:tune=full, whose rule is theirs)
            for mesh, fields in ({"as configured": {}} if per_chip else MESHES).items():
                yield Row(f"table: {model}, {pod}, {mesh}", config, argument, topology, fields, per_chip)
    for config, argument, per_chip in programs():
        yield Row(f"programs: {config}:{argument}", config, argument, "", {}, per_chip)


def programs() -> Iterator[tuple[str, str, int]]:
    """(config, argument, clips per chip) of every published training step."""
    for size in SIZES:
        yield from ((f"vq3d_{name}", size, 0) for name in MAGVIT)
        yield from ((f"vq2d_{name}", size, 0) for name in (*MAGVIT, "imagenet"))
        yield "vq2d_imagenet", f"{size},pixels=64", 0
        yield from ((f"commit_{name}", size, 0) for name in (*MAGVIT, "bair_mt8"))
    for name in TABLES:
        yield from ((name, tasks, 0) for tasks in ("tasks=FP", "tasks=MT8") if (name, tasks) != ("table5_prefix", "tasks=MT8"))
    yield from ((f"table6_{name}", "", 0) for name in ("maskgit_2d", "maskgit_3d", "ar", "magvit"))
    yield from ((f"table7_{name}", "", 0) for name in ("vq2d", "vq3d_b", "vq3d_l"))
    yield from ((name, f"size={size}", 0) for name in ("vqgan_imagenet", "maskgit_imagenet") for size in (256, 512))
    yield from ((name, f"tune={how}", 1) for name in ("sd", "modelscope", "svd") for how in ("full", "lora", *(["temporal"] if name != "sd" else [])))
    yield from ((name, f"part={part}", 1) for name in ("mavin_horse", "mavin_tiger") for part in ("transition", "action"))
    yield from ((f"aid_{name}", "", 1) for name in ("ssv2", "epic", "ucf101", "videos"))
    yield from (("aid_bridge", argument, 1) for argument in AID)
    yield from (("magdiff_pexels", argument, 1) for argument in MAGDIFF)


def planned(row: Row, mesh_of: Callable[[Mapping[str, int]], Any]) -> Any:
    """The row's Plan on the mesh that `mesh_of` makes of the config's axes; with numbers of a schedule that are the same for all."""
    from magvid import explain, job, sharding

    config = importlib.import_module(f"configs.{row.config}").get_config(row.argument).to_dict()
    config = job.check_config(config | dict(row.fields))
    mesh = mesh_of(config["mesh"])
    config["batch"] = row.per_chip * sharding.data_shards(mesh) or config["batch"]
    config["steps"] = 10**6
    for spec in config["optim"].values():
        spec["rules"] = [[regex, rule and rule | dict(peak=1e-4, warmup=100 * bool(rule.get("warmup")), total=None)] for regex, rule in spec["rules"]]
    return explain.Plan.of(config, mesh, load_config)


def estimate(plan: Any) -> float:
    """Bytes of a chip, as `magvid explain` has them."""
    return sum(plan.held().values()) + plan.within(plan.trace(), "tpu")


def run(row: Row, effort: float, known: dict[str, dict]) -> dict:
    """In a process of its own: {"fingerprint", "estimate", and what `ahead.Compiled` has}, or {"fails": why}."""
    import jax

    from magvid import ahead, meter, sharding
    from magvid.types import UserError

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_exec_time_optimization_effort", effort)
    failed = {}
    for topology in [row.topology] if row.topology else [*([SMALL] if row.per_chip else []), *PODS.values()]:
        try:
            devices = ahead.open_devices(topology)
            plan = planned(row, lambda axes: sharding.make_mesh(axes, devices))
            lowered = ahead.lower(plan)
            fingerprint = f"{lowered.fingerprint} {topology}"
            if fingerprint in known:
                return known[fingerprint]
            guess, there = estimate(plan), meter.data_sheet(devices[0].device_kind, ahead.CHIPS).memory
            if guess > HOPELESS * there:
                failed = {"fails": f"not compiled: {gb(guess)} of {gb(there)} GB by the estimate", "topology": topology}
                continue
            found = ahead.compile_step(plan, topology, lowered)
        except UserError as error:
            failed = {"fails": str(error), "topology": topology}
            continue
        return dataclasses.asdict(found) | {"fingerprint": fingerprint, "estimate": guess, "roofline": found.roofline(), "effort": effort}
    return failed


def made_by() -> dict[str, str]:
    """Of which day, commit and versions a row is."""
    git = lambda *words: subprocess.run(["git", *words], capture_output=True, text=True, cwd=HERE).stdout.strip()
    commit = git("rev-parse", "--short", "HEAD") or "unknown"
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", f":(exclude)results/{RESULTS.name}", f":(exclude){PAGE.name}")
    versions = {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
    return {"date": time.strftime("%Y-%m-%d"), "commit": commit + "-dirty" * bool(changed)} | versions


def main(argv: list[str]) -> None:
    if {"--help", "-h"} & set(argv):
        print(program_help(PROGRAM))
        return
    options = parse(PROGRAM, argv, need="")
    done = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    chosen = [row for row in rows() if re.search(options.only, row.name)]
    if options.list:
        print("\n".join(f"{'done' if row.name in done else '    '}  {row.name}" for row in chosen))
        return
    for row in [] if options.page else chosen:
        if row.name in done and "broke" not in done[row.name]:
            continue
        print(f"{time.strftime('%H:%M')} {row.name}", flush=True)
        known = {found["fingerprint"]: found for found in done.values() if "fingerprint" in found}
        try:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:  # what a compiler holds is given back
                found = pool.submit(run, row, options.effort, known).result()
        except Exception as error:  # of the compiler, or of its process, which may be out of memory
            found = {"fails": (str(error).splitlines() or [type(error).__name__])[0][:300], "topology": row.topology, "broke": True}
        done[row.name] = {"made by": made_by()} | found  # one that is the same program as another's stays that one's
        part = RESULTS.with_suffix(".part")
        part.write_text(json.dumps(done, indent=1) + "\n")
        part.replace(RESULTS)
        PAGE.write_text(page(done))
    PAGE.write_text(page(done))


# The page ------------------------------------------------------------------------------------------------------------


def page(done: Mapping[str, dict]) -> str:
    """pods.md."""
    of = lambda part: {name.partition(": ")[2]: found for name, found in done.items() if name.startswith(part)}
    made = sorted({f"jax {found['made by']['jax']}, libtpu {found['made by']['libtpu']}" for found in done.values()})
    parts = [HEAD.format(versions="; ".join(made) or "none as yet"), "## The largest models\n", best_of(of("table")), "## The same batch on more chips\n", curves(of("curves"))]
    parts += ["## Memory: estimate of `magvid explain` and the compiler\n", estimates(done), "## Every program\n", every(of("programs"))]
    return "\n".join(parts) + "\n"


HEAD = """# On TPU pods that are not there

Training steps compiled by the TPU's own compiler ({versions}, effort -1) for topologies without any TPU at hand, by `benchmarks/pods.py`; nothing of
this has run on one ([pods.json](results/pods.json) says of each row of which commit it is). Bytes are of one chip; *least time* is the largest of: multiplications at the data sheet's bfloat16 peak, bytes in memory at its bandwidth, bytes
between chips on a ring at half of the links' (a real step takes longer). Frozen networks are of the published sizes.
"""


def gb(n: float) -> str:
    return f"{n / 1e9:.1f}"


def markdown(header: str, lines: list[str]) -> str:
    columns = header.count("|") - 1
    return "\n".join([header, "|" + "---|" * columns, *lines]) + "\n"


def least(found: Mapping[str, Any]) -> tuple[float, str]:
    """(seconds, what bounds it)."""
    bound = max(found["roofline"], key=found["roofline"].get)
    return found["roofline"][bound], bound


def best_of(found: Mapping[str, dict]) -> str:
    lines = []
    for name, row in found.items():
        model, pod, mesh = name.rsplit(", ", 2)
        if "fails" in row:
            lines.append(f"| {model} | {pod} | {mesh} | | | | | {row['fails']} |")
            continue
        alike = [r for n, r in found.items() if n.startswith(f"{model}, {pod}, ") and "fails" not in r]
        seconds, bound = least(row)
        mark = "**" if seconds == min(least(r)[0] for r in alike) else ""
        moved = ", ".join(f"{kind} {gb(m[2])}" for kind, m in row["collectives"].items() if m[2] > 1e7)
        lines.append(
            f"| {model} | {pod} | {mark}{mesh}{mark} | {row['batch']} | {gb(row['arguments'])} + {gb(total(row) - row['arguments'])} | {row['flops'] / 1e12:.1f} | {moved} | {seconds * 1e3:.0f} ms, {bound} |"
        )
    return markdown("| model | pod | mesh (**best**) | batch | GB between steps + within | TFLOP | sent, GB | least time |", lines)


def total(row: Mapping[str, Any]) -> float:
    return sum(row[part] for part in ("arguments", "temporary", "outputs", "code"))


def curves(found: Mapping[str, dict]) -> str:
    lines = []
    for name, row in found.items():
        model, chips = name.removesuffix(" chips").rsplit(", ", 1)
        if "fails" in row:
            lines.append(f"| {model} | {chips} | | | | {row['fails']} |")
            continue
        seconds, bound = least(row)
        first = next(r for n, r in found.items() if n.startswith(model) and "fails" not in r)
        ideal = least(first)[0] * first["chips"] / int(chips)
        lines.append(f"| {model} | {chips} | {gb(total(row))} | {seconds * 1e3:.0f} ms, {bound} | {row['batch'] / seconds:,.0f} | {100 * ideal / seconds:.0f} % |")
    return markdown("| model, batch 256 | chips of v5e | GB | least time | clips per second at most | of the first row's speed per chip |", lines)


def estimates(done: Mapping[str, dict]) -> str:
    seen, lines = set(), []
    for name, row in done.items():
        if "fails" in row or row["fingerprint"] in seen:
            continue
        seen.add(row["fingerprint"])
        error = row["estimate"] / total(row) - 1
        lines.append(f"| {name.partition(': ')[2]} | {row['topology']} | {gb(row['estimate'])} | {gb(total(row))} | {100 * error:+.0f} % |")
    return markdown("| program | topology | estimate, GB | compiler, GB | error |", lines)


def every(found: Mapping[str, dict]) -> str:
    lines = []
    for name, row in found.items():
        if "fails" in row:
            lines.append(f"| {name} | {row['topology']} | | | {row['fails']} |")
        else:
            lines.append(f"| {name} | {row['topology']} | {row['batch']} | {gb(total(row))} | {row['fingerprint'].split()[0]} |")
    return markdown("| config | fits on | batch | GB of a chip | program |", lines)


if __name__ == "__main__":
    use_huge_pages()
    leave(guarded("pods", sys.argv[1:], main))
