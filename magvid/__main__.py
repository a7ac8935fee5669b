"""The command line: `magvid train | explain | compile | encode | sample | connect | predict | compose | edit | export | import | evaluate`; what flags they have is in commands.py.

Exit codes: 0 done; 1 a fault of magvid (one line with its type); 2 bad input (one line that says what to do); 130
Ctrl-C and 143 SIGTERM, which save a training run first. `--debug` adds the traceback. Nothing heavy is imported before
the flags are known to be right.
"""

import copy
import dataclasses
import difflib
import functools
import importlib
import os
import pathlib
import re
import signal
import sys
from collections.abc import Sequence

import magvid
from magvid.commands import COMMANDS, overview
from magvid.flags import Program, guarded, leave, load_config, parse, program_help, use_huge_pages


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; `argv` without the program's name (default: the process's). Returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    return guarded(_program(argv), argv, _dispatch)


def console() -> None:
    """The `magvid` script: `main`, then out.

    Ctrl-C ends the process at once, where a KeyboardInterrupt may be lost inside of an import; while training, the loop
    takes it instead, and saves.
    """

    def interrupted(number, frame):
        print(f"{_program(sys.argv[1:])}: interrupted", file=sys.stderr)
        leave(130)

    use_huge_pages()
    signal.signal(signal.SIGINT, interrupted)
    leave(main())


def _program(argv: Sequence[str]) -> str:
    return f"magvid {argv[0]}" if argv and argv[0] in COMMANDS else "magvid"


def _dispatch(argv: list[str]) -> None:
    if not argv:
        raise ValueError(f"give a command, one of {', '.join(COMMANDS)}; `magvid --help` explains them")
    command, *rest = argv
    if command in ("--help", "-h", "help"):
        print(overview())
    elif command in ("--version", "version"):
        print(f"magvid {magvid.__version__}")
    elif command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, 1)
        raise ValueError(
            f'there is no command "{command}"; '
            + (f"did you mean {near[0]}?" if near else f"choose of {', '.join(COMMANDS)}")
        )
    elif {"--help", "-h", "--helpfull", "--helpshort"} & set(rest):
        print(program_help(COMMANDS[command]))
    else:
        RUNS[command](_named(COMMANDS[command], rest))


def _named(program: Program, argv: list[str]) -> list[str]:
    """`magvid explain FILE.py` is `magvid explain --config=FILE.py`, of a command that needs a config."""
    takes = {flag.name for flag in program.flags}
    if "config" in takes and "run" not in takes and argv and not argv[0].startswith("-"):
        return [f"--config={argv[0]}", *argv[1:]]
    return argv


# Commands -----------------------------------------------------------------------------------------------------------


def _train(argv: list[str]) -> None:
    flags = parse(COMMANDS["train"], argv, "config workdir")
    profile = _steps("profile", flags.profile)
    config = open_config("train", flags.config, argv)
    import jax

    from magvid import cluster, generator, train

    cluster.join(flags.distributed, flags.coordinator, flags.processes, flags.process)
    _, newest = train.train(config, flags.workdir, evaluate=generator.Preview(config), trust=flags.trust, profile=profile)
    losses = "  ".join(f"{k} {v:.4g}" for k, v in newest.items() if k.startswith(("train/loss/", "eval/loss/")))
    if jax.process_index() == 0:
        print(f"trained: {flags.workdir}  {losses}")


def _steps(flag: str, text: str | None) -> tuple[int, int] | None:
    """"20-24" -> (20, 24), "20" -> (20, 20)."""
    if text is None:
        return None
    if not (found := re.fullmatch(r"(\d+)(?:-(\d+))?", text)):
        raise ValueError(f"--{flag}={text}: give the first step and the last, such as 20-24")
    first, last = int(found[1]), int(found[2] or found[1])
    if first > last:
        raise ValueError(f"--{flag}={text}: the first step comes after the last")
    return first, last


def _explain(argv: list[str]) -> None:
    flags = parse(COMMANDS["explain"], argv, "config")
    config = open_config("explain", flags.config, argv)
    from magvid import explain, job, sharding

    config = job.check_config(config)
    devices = flags.devices or sharding.least_devices(config["mesh"])
    plan = explain.Plan.of(config, sharding.abstract_mesh(config["mesh"], devices), load_config)
    for i, text in enumerate(explain.explain(plan, flags.depth)):
        print("\n" * (i > 0) + text, flush=True)


def _compile(argv: list[str]) -> None:
    flags = parse(COMMANDS["compile"], argv, "config")
    config = open_config("compile", flags.config, argv)
    import jax

    from magvid import ahead, explain, job, sharding

    if flags.steps and flags.topology != "local":
        raise ValueError(f"--steps={flags.steps}: steps are timed where the devices are, --topology=local")
    if flags.effort > 1:
        raise ValueError(f"--effort={flags.effort:g}: a number from -1 to 1")
    devices = ahead.open_devices(flags.topology, flags.chips)
    jax.config.update("jax_exec_time_optimization_effort", flags.effort)
    config = job.check_config(config)
    plan = explain.Plan.of(config, sharding.make_mesh(config["mesh"], devices), load_config)
    print("\n\n".join(ahead.compile_step(plan, flags.topology, ahead.lower(plan), flags.steps).lines()))


def _encode(argv: list[str]) -> None:
    flags = parse(COMMANDS["encode"], argv, "config out")
    config = open_config("encode", flags.config, argv)
    from magvid import encode, evaluate

    options = dict(split=flags.split, rows=flags.rows, batch=flags.batch, features=flags.features, trust=flags.trust)
    record = encode.encode(config, flags.out, **options, on_progress=evaluate.PrintProgress())
    print(f"encoded: {record.rows} rows, {sum(record.sizes) / 1e6:.1f} MB in {flags.out} ({record.parts}: {record.contents})")
    print(f"to train on them, add --config.data.{flags.split}.cache={flags.out}")


def _sample(argv: list[str]) -> None:
    run, flags = _open_run("sample", argv)
    from magvid import sample

    options = sample.Options(
        **{f: getattr(flags, f) for f in sample.Options.__dataclass_fields__ if f != "tasks"}, tasks=_names(flags.task)
    )
    for path in sample.sample_run(run, options, weights=flags.weights, trust=flags.trust):
        print(path)


def _makes_videos(command: str, argv: list[str]) -> None:
    """connect, predict, compose, edit: each a module with Options, and a function of its name that writes videos and returns where."""
    run, flags = _open_run(command, argv)
    module = importlib.import_module(f"magvid.{command}")
    if not flags.out:
        raise ValueError("--out is missing: say where to write, such as --out=made.mp4")
    options = module.Options(**{f: getattr(flags, f) for f in module.Options.__dataclass_fields__})
    for path in getattr(module, command)(run, options, weights=flags.weights, trust=flags.trust):
        print(path)


def _export(argv: list[str]) -> None:
    flags = parse(COMMANDS["export"], argv, "run out")
    from magvid import adapter_files, run_files, runs

    run = runs.open_run(flags.run, flags.trust)
    form = adapter_files if adapter_files.additions(run) else run_files
    count = form.export(run, flags.out, flags.weights, flags.dtype)
    print(f"{flags.out}: {count:,} parameters, {os.path.getsize(flags.out) / 1e6:.1f} MB")


def _import(argv: list[str]) -> None:
    flags = parse(COMMANDS["import"], argv, "file out")
    if len(flags.file) != 1:
        raise ValueError(f"give one file, got {len(flags.file)}: {', '.join(flags.file)}")
    from magvid import run_files

    print("\n".join(run_files.load(flags.file[0], flags.out, flags.trust)))


def _evaluate(argv: list[str]) -> None:
    run, flags = _open_run("evaluate", argv)
    from magvid import evaluate, runs

    of = f"-{pathlib.Path(flags.data.partition(':')[0]).stem}" if flags.data else ""
    out = pathlib.Path(flags.out) if flags.out else run.path / f"evaluation{of}.json"
    evaluate.check_file(out)
    result = evaluate.evaluate_run(
        run,
        _names(flags.tasks),
        clips=flags.clips,
        batch=flags.batch,
        best_of=flags.best_of,
        seed=flags.seed,
        weights=flags.weights,
        trust=flags.trust,
        on_progress=evaluate.PrintProgress(),
    )
    runs.write_json(out, result.numbers)
    print(evaluate.table(result.numbers))
    print(out)


RUNS = dict(train=_train, explain=_explain, compile=_compile, encode=_encode, sample=_sample, export=_export, evaluate=_evaluate) | {"import": _import}
RUNS |= {command: functools.partial(_makes_videos, command) for command in ("connect", "predict", "compose", "edit")}


def open_config(command: str, spec: str, argv: list[str]) -> dict:
    """The config of a file with the overrides of `--config.field=value`; fields that are left out may be named as well."""
    config = load_config(spec)
    from ml_collections.config_dict import placeholder

    from magvid import job

    with config.unlocked():
        missing = {name: value for name, value in copy.deepcopy(job.DEFAULTS).items() if name not in config}
        config.update({k: placeholder(str) if v is None else v for k, v in missing.items()})  # None alone has no type
        for section in (config.get("data") or {}).values():
            for name, kind in dict(cache=str, features=bool).items():
                if hasattr(section, "keys") and section.get(name) is None:
                    section[name] = placeholder(kind)
    return parse(COMMANDS[command], argv, config=config).config.to_dict()


def _open_run(command: str, argv: list[str]):
    """(Run with the held-out clips of `--data` and the overrides of `--config.field=value`, flags). Of a config without a run: a Recipe."""
    can = any(flag.name == "config" for flag in COMMANDS[command].flags)
    flags = parse(COMMANDS[command], argv, "run|config" if can else "run")
    recipe = flags.config if can else None
    if recipe:
        config = open_config(command, recipe, argv)
        from magvid import job, runs

        path = pathlib.Path(recipe.partition(":")[0])
        return runs.Recipe(path, runs.anchored(job.check_config(config), pathlib.Path.cwd())), flags
    from ml_collections import ConfigDict

    from magvid import runs

    run = runs.open_run(flags.run, flags.trust)
    if getattr(flags, "data", None):
        from magvid import evaluate, job

        run = evaluate.measured_on(run, runs.anchored(job.check_config(load_config(flags.data)), pathlib.Path.cwd()))
    config = parse(COMMANDS[command], argv, config=ConfigDict(run.config)).config.to_dict()
    return dataclasses.replace(run, config=config), flags


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text in (None, "", "all") else tuple(n.strip() for n in text.split(",") if n.strip())


if __name__ == "__main__":
    console()
