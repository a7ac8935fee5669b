"""A config becomes objects: a dict with "target" is called, with "factory" it becomes a partial; the path is the
registry.
"""

import contextlib
import difflib
import functools
import importlib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any


def resolve(path: str) -> Any:
    """The object named by an absolute path "package.module:Name"."""
    module, _, name = path.partition(":")
    if not name:
        raise ValueError(f'"{path}" is not of the form "package.module:Name"')
    try:
        return functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except ModuleNotFoundError as e:
        if e.name and not (module == e.name or module.startswith(e.name + ".")):
            raise  # the module exists, but something that it imports does not
        raise ValueError(
            f'"{path}": there is no module "{e.name}"; give an absolute path, and put your own package on PYTHONPATH'
        ) from None
    except AttributeError:
        public = [n for n in vars(importlib.import_module(module)) if not n.startswith("_") and n[0].isupper()]
        raise ValueError(f'"{path}": module "{module}" has no "{name}"; it has {", ".join(sorted(public))}{near(name, public)}') from None


def build(spec: Any) -> Any:
    """Build the objects that `spec` describes, depth first.

    {"target": "magvid.models.vq3d:Encoder", "filters": 64} calls the constructor; {"factory": ...} gives a
    `functools.partial` for a part that is built at many places, its arguments checked at once; other dicts, lists and
    tuples recurse; leaves pass through. Raises ValueError that names the constructor and its real arguments when the
    arguments do not fit.
    """
    if isinstance(spec, (list, tuple)):
        return type(spec)(build(s) for s in spec)
    if not hasattr(spec, "items"):
        return spec
    built = {k: build(v) for k, v in spec.items() if k not in ("target", "factory")}
    path = spec.get("target") or spec.get("factory")
    if path is None:
        return built
    make = _fitting(path, built, whole="target" in spec)
    if "factory" in spec:
        return functools.partial(make, **built)
    try:
        return make(**built)
    except TypeError as error:  # a text where a number is wanted
        raise ValueError(f"{path}: {error}") from error


def check_spec(spec: Any) -> None:
    """ValueError, as `build` has it, for a name that there is not, or arguments that do not fit, in what `spec` describes; nothing is built. What needs a
    package that is not installed is not looked at.
    """
    for child in spec.values() if isinstance(spec, Mapping) else spec if isinstance(spec, (list, tuple)) else ():
        check_spec(child)
    path = (spec.get("target") or spec.get("factory")) if isinstance(spec, Mapping) else None
    if path is not None:
        with contextlib.suppress(ImportError):
            _fitting(path, {k: v for k, v in spec.items() if k not in ("target", "factory")}, whole="target" in spec)


def near(name: str, names: Iterable[str]) -> str:
    """", did you mean lr?", or nothing where none of `names` is like `name`."""
    found = difflib.get_close_matches(name, list(names), 1)
    return f", did you mean {found[0]}?" if found else ""


def _fitting(path: str, arguments: Mapping[str, Any], whole: bool) -> Any:
    """What `path` names; ValueError where it does not take `arguments`, or needs more, unless others come later."""
    make = resolve(path)
    signature = inspect.signature(make)
    try:
        # first, so that a misspelt argument is named and not the one that it leaves missing
        signature.bind_partial(**arguments)
        if whole:
            signature.bind(**arguments)
    except TypeError as e:
        names = [p for p in signature.parameters if p not in ("parent", "name")]
        meant = next(filter(None, (near(k, names) for k in arguments if k not in signature.parameters)), "")
        raise ValueError(f"{path}: {e}{meant}; its arguments are {', '.join(names)}") from None
    return make
