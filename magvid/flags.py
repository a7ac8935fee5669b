"""Flags of a program: how they are read, the help, the way in and out. Flags by absl, `--config.field=value` by ml_collections;
neither is imported before it is needed.
"""

import ast
import contextlib
import difflib
import gc
import importlib.util
import json
import os
import pathlib
import re
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Flag(NamedTuple):
    """`kind` is "str", "int", "float", "bool", "several", a text that may be given more than once, or "files", the arguments that are no
    flags; `shown` the value's placeholder in the help; `low` bounds numbers.
    """

    name: str
    kind: str
    default: Any
    shown: str
    help: str
    low: float | None = None


class Program(NamedTuple):
    """What is started by `name` on a command line; `field` is an example of --config.FIELD, "" where it has none."""

    name: str
    text: str
    flags: Sequence[Flag]
    examples: Sequence[str]
    field: str = ""


# Reading ------------------------------------------------------------------------------------------------------------


def load_config(spec: str):
    """The ConfigDict of "path/to/file.py[:argument]".

    The parent of the file's folder is put on sys.path, so that configs can share code. ValueError or OSError where the
    file is missing or is no config; errors of the file itself pass through."""
    from ml_collections import ConfigDict

    path, _, argument = spec.partition(":")
    file = pathlib.Path(path).expanduser().absolute()
    if not file.is_file():
        near = difflib.get_close_matches(file.name, os.listdir(file.parent), 1) if file.parent.is_dir() else []
        raise ValueError(
            f"there is no config {path}" + (f"; did you mean {pathlib.Path(path).parent / near[0]}?" if near else "")
        )
    if str(file.parent.parent) not in sys.path:
        sys.path.insert(0, str(file.parent.parent))
    module_spec = importlib.util.spec_from_file_location(f"{file.parent.name}.{file.stem}", file)
    if file.suffix != ".py" or module_spec is None:
        raise ValueError(f"{path} is not a config: give a Python file with a function get_config")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except SyntaxError as error:
        raise ValueError(f"{path} line {error.lineno} is not Python: {error.msg}") from error
    if not callable(getattr(module, "get_config", None)):
        raise ValueError(f"{path} has no function get_config")
    config = module.get_config(*([argument] if argument else []))
    if not hasattr(config, "items"):
        raise ValueError(f"get_config of {path} returns {type(config).__name__}: it must return a ConfigDict or a dict")
    return config if isinstance(config, ConfigDict) else ConfigDict(config)


def parse(program: Program, argv: list[str], need: str = "run", config=None):
    """The values of the program's flags. Where `config` (a ConfigDict) is given, `values.config` is it with its overrides;
    otherwise `--config.*` is left for later, because what it may name is not known yet.

    ValueError for a flag or field that does not exist, a bad value, or a missing flag of `need` (of "run|config" one)."""
    from absl import flags
    from ml_collections import config_flags

    values = flags.FlagValues()
    files = next((flag.name for flag in program.flags if flag.kind == "files"), None)
    values.set_gnu_getopt(True)  # flags may stand after files, and after what is not to be there
    for flag in program.flags:
        if config is None or flag.name != "config":
            _define(flags, values, flag)
    takes = {f.name: f for f in program.flags if f.kind not in ("bool", "files")}
    for arg, following in zip(argv, argv[1:]):
        if arg.startswith("-") and following.startswith("--") and (flag := takes.get(arg.lstrip("-"))):
            raise ValueError(f"--{flag.name} needs a value: --{flag.name}={flag.shown}; `{program.name} --help` lists the flags")
    fields = [following for arg, following in zip(argv, argv[1:]) if re.fullmatch(r"--?config\.[^=]*", arg)]  # "--config.a 1" leaves the 1
    if config is None:
        if files and (bad := next((a for a in argv if re.fullmatch(r"--?config\.[^=]*", a)), None)):
            raise ValueError(f"{bad}: beside files a field is written --config.FIELD=VALUE")  # what follows would be a file
        argv = [a for a in argv if not re.match(r"--?(no)?config\.", a)]
    else:
        argv = _override(config, _without(argv, "config"))
    argv = [program.name, *argv]
    try:
        if config is not None:
            config_flags.DEFINE_config_dict("config", config, flag_values=values, lock_config=True, sys_argv=argv)
        extra = values(argv)[1:]
    except (flags.Error, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{_flag_error(error, program)}; `{program.name} --help` lists the flags") from error
    if files:
        values[files].value, extra = extra, []
    if strangers := [word for word in extra if config is not None or word not in fields]:
        several = next((f"; each {flag.name} is given as --{flag.name}={flag.shown}" for flag in program.flags if flag.kind == "several"), "")
        raise ValueError(f'unexpected argument "{strangers[0]}": flags are written --name=value{several}')
    for names in need.split() if config is None else ():
        given = [name for name in names.split("|") if getattr(values, name)]
        if len(given) != 1:
            flags = " or ".join(f"--{name}" for name in names.split("|"))
            what = "is missing" if not given else "is one too many: give one of both"
            raise ValueError(f"{flags} {what}; `{program.name} --help` shows examples")
    return values


def _flag_error(error: Exception, program: Program) -> str:
    """absl's and ml_collections' messages in the words of the other errors."""
    text = " ".join(str(error).split()).rstrip(" ?.")
    if match := re.search(r"Unknown command line flag '([^']+)'", text):
        near = difflib.get_close_matches(match[1], [f.name for f in program.flags], 1)
        return f"there is no flag --{match[1]}" + (f", did you mean --{near[0]}?" if near else "")
    if match := re.match(r"flag --([^=]+)=(.*?): (invalid literal|could not convert)", text):
        kind = "a whole number" if match[3] == "invalid literal" else "a number"
        return f'--{match[1]} must be {kind}, got "{match[2]}"'
    if match := re.match(r"flag --([^=]+)=.*Non-boolean argument to boolean flag', '(.*)'", text):
        return f'--{match[1]} must be true or false, got "{match[2]}"'
    if match := re.match(r"Type <class '(\w+)'> of field (\S+) is not supported", text):
        return f"--{match[2]} is a {match[1]}, which takes no value here: change the config itself"
    return text.replace("flag --", "--")


def _define(flags, values, flag: Flag) -> None:
    bounds = {} if flag.low is None else {"lower_bound": flag.low}
    define = {
        "str": flags.DEFINE_string,
        "int": flags.DEFINE_integer,
        "float": flags.DEFINE_float,
        "bool": flags.DEFINE_boolean,
        "several": flags.DEFINE_multi_string,
        "files": flags.DEFINE_list,
    }[flag.kind]
    define(flag.name, flag.default, flag.help, flag_values=values, **bounds)


def _without(argv: list[str], name: str) -> list[str]:
    kept, skip = [], False
    for arg in argv:
        if skip:
            skip = False
        elif re.fullmatch(rf"--?{name}", arg):
            skip = True
        elif not re.match(rf"--?{name}=", arg):
            kept.append(arg)
    return kept


def _dotted(path: Sequence[str]) -> str:
    return ".".join(path).replace(".[", "[")


FIELD = re.compile(r"--?(?:no)?config\.([^=]+)=?")  # --config.a.b=, and what is named


def _override(config, argv: Sequence[str]) -> list[str]:
    """Sets what flags cannot, None and whole lists and dicts, from `--config.a.b=VALUE` in JSON or as Python writes it; returns the rest of `argv`.
    ValueError naming the nearest field where `config` has none, or a value that is not of its kind.
    """
    rest = []
    for arg in argv:
        match = FIELD.match(arg)
        if not match:
            rest.append(arg)
            continue
        owner, key = _place(config, match[1], arg)
        if "=" in arg and (value := _whole(owner, key, arg, match[1], arg[match.end() :])) is not _FLAG:
            with contextlib.ExitStack() as stack:
                if hasattr(owner, "unlocked"):  # a ConfigDict, and no plain dict or list within a list
                    stack.enter_context(config.unlocked())
                    stack.enter_context(owner.unlocked())
                    stack.enter_context(owner.ignore_type())
                owner[key] = value
        else:
            rest.append(arg)
    for arg in rest:  # in what was set whole it may be gone
        if match := FIELD.match(arg):
            _place(config, match[1], arg)
    return rest


_FLAG = object()  # in place of a value: it is for flags to read


def _whole(owner: Any, key: str | int, arg: str, name: str, text: str) -> Any:
    """What the field is to be, or _FLAG. ValueError where it is a list or dict and `text` is none."""
    now, value = owner[key], _literal(text)
    if value is None:
        return None
    if hasattr(now, "keys"):
        kind = dict
    elif isinstance(now, list):
        kind, value = list, list(value) if isinstance(value, tuple) else value
    elif isinstance(now, tuple):  # flags read a tuple as well, also without brackets
        return tuple(value) if isinstance(value, (list, tuple)) else _FLAG
    elif now is None and (isinstance(value, (list, dict)) or _type(owner, key) is type(None)):  # not one that waits for a text or a number
        return value
    else:
        return _FLAG
    if not isinstance(value, kind):
        example = json.dumps(now.to_dict() if hasattr(now, "to_dict") else now)
        raise ValueError(f"{arg}: config.{name} takes a {kind.__name__} in JSON, such as '{example if 2 < len(example) < 200 else '{...}' if kind is dict else '[...]'}'")
    return value


def _literal(text: str) -> Any:
    """The value that a text is in JSON, or else in Python; the text itself where it is none."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return text


def _type(owner: Any, key: str | int) -> type:
    return owner.get_type(key) if hasattr(owner, "get_type") else type(owner[key])


def _place(config, name: str, arg: str) -> tuple[Any, str | int]:
    """(what holds the field a.b[0] of `config`, its key there)."""
    owner, key, at, path = None, "", config, []
    for part in re.findall(r"[^.\[\]]+|\[\d+\]", name):
        if part.startswith("[") and isinstance(at, Sequence) and not isinstance(at, str):
            owner, key = at, int(part[1:-1])
            if key >= len(at):
                raise ValueError(f"{_dotted(path)} has {len(at)} entries, [0] to [{len(at) - 1}], and no {part} (in {arg})")
            if isinstance(at, tuple):
                raise ValueError(f"{_dotted(path)} is a tuple, of which no entry can be changed alone: give all of it (in {arg})")
        else:
            owner, key, fields = at, part, list(at.keys()) if hasattr(at, "keys") else []
            if part not in fields:
                near, where = difflib.get_close_matches(part, fields, 1), _dotted(path) or "the config"
                hint = f"did you mean {_dotted([*path, near[0]])}?" if near else f"it has {', '.join(sorted(fields)) or 'no fields'}"
                whole = f"; give all of it by --config.{_dotted(path)}='{{...}}'" if path and not near and fields and "target" not in fields else ""
                raise ValueError(f'{where} has no field "{part}" (in {arg}); {hint}{whole}')
        at, path = owner[key], [*path, part]
    if owner is None:
        raise ValueError(f"{arg}: --config.FIELD=VALUE names a field")
    return owner, key


# Help ---------------------------------------------------------------------------------------------------------------


def program_help(program: Program) -> str:
    """What `magvid COMMAND --help` and the like print."""
    named = lambda f: f.shown if f.kind == "files" else f"--{f.name}" + (f"={f.shown}" if f.shown else "")
    rows = [(named(f), f.help + _default(f)) for f in program.flags]
    if program.field:
        what = "change a field of the " + (
            "config" if any(f.name == "config" for f in program.flags) else "run's config that its weights allow"
        )
        rows.append(("--config.FIELD=VALUE", f"{what}, e.g. {program.field}; lists and dicts in JSON; of a list one entry: --config.a.b[0]=VALUE"))
    rows.append(("--debug", "show the traceback of an error"))
    width = max(len(name) for name, _ in rows)
    files = "".join(f" {f.shown}" for f in program.flags if f.kind == "files")
    lines = [program.text, "", f"usage: {program.name}{files} --flag=value ...", ""]
    lines += [f"  {name:<{width}}  {help}" for name, help in rows]
    return "\n".join([*lines, "", "examples:", *(f"  {program.name} {e}".rstrip() for e in program.examples)])


def _default(flag: Flag) -> str:
    if flag.default in (None, "", False, ()) or "default" in flag.help:
        return ""
    return f"; default: {flag.default}" if flag.kind == "str" else f"; default: {flag.default:g}"


# Starting and ending ------------------------------------------------------------------------------------------------


def guarded(name: str, argv: Sequence[str], run: Callable[[list[str]], None]) -> int:
    """The exit code of `run(argv without --debug)`; an error is one line on stderr, with its traceback after --debug.

    0 done; 1 a fault of magvid; 2 bad input; 130 Ctrl-C; or that of a SystemExit, as training raises when it was asked to stop.
    """
    debug = "--debug" in argv
    gc.set_threshold(100_000, 20, 50)  # tracing makes objects by the million, which Python would look through again and again
    try:
        run([a for a in argv if a != "--debug"])
        return 0
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    except SystemExit as stop:
        if not isinstance(stop.code, int):
            raise
        return stop.code
    except Exception as error:
        if debug:
            traceback.print_exc()
        expected = _is_expected(error)
        text = " ".join(str(error).split()) or "it says no more"
        hint = "" if debug else " (run again with --debug for the traceback)"
        print(f"{name}: {text}" if expected else f"{name}: {type(error).__name__}: {text}{hint}", file=sys.stderr)
        return 2 if expected else 1


def use_huge_pages() -> None:
    """Starts this program anew, with huge pages for its memory, where Linux gives them on request only.

    XLA's programs on CPU take fresh memory in every step; in pages of 4 kB the kernel needs a fifth to a half of the time.
    """
    pages = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if "GLIBC_TUNABLES" not in os.environ and pages.is_file() and "[madvise]" in pages.read_text():
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def leave(code: int) -> None:
    """End the process. After Ctrl-C, or where an evaluation or a compilation was left to its thread, at once: XLA may still be compiling or computing there, which the
    interpreter's own way out does not survive.
    """
    if code == 130 or any(thread.name == "stoppable" for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _is_expected(error: Exception) -> bool:
    types = sys.modules.get("magvid.types")  # not imported here: before that, only ValueErrors of this file arrive
    return isinstance(error, (ValueError, OSError)) or (types is not None and isinstance(error, types.UserError))
