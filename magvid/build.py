"""A config becomes objects: a dict with "target" is called, with "factory" it becomes a partial; the path is the
registry.
"""

import difflib
import functools
import importlib
import inspect
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
        raise ValueError(f'"{path}": module "{module}" has no "{name}"; it has {", ".join(sorted(public))}') from None


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
    make = resolve(path)
    signature = inspect.signature(make)
    try:
        # first, so that a misspelt argument is named and not the one that it leaves missing
        signature.bind_partial(**built)
        if "target" in spec:
            signature.bind(**built)
    except TypeError as e:
        names = [p for p in signature.parameters if p not in ("parent", "name")]
        near = [n for k in built if k not in signature.parameters for n in difflib.get_close_matches(k, names, 1)]
        raise ValueError(f"{path}: {e}{f', did you mean {near[0]}?' if near else ''}; its arguments are {', '.join(names)}") from None
    return make(**built) if "target" in spec else functools.partial(make, **built)
