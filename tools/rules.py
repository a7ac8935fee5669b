"""Renaming of parameters by ordered rules, strict in both directions. Conversion is pure: dict of names -> dict of
names.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

# (regex of the whole source name, replacement), and where the array changes as well the name of an operation
Rule = tuple[str, str] | tuple[str, str, str]


def _drop_leading_1(x: np.ndarray) -> np.ndarray:
    if x.shape[:1] != (1,):
        raise ValueError(f"expected a leading axis of 1, got the shape {x.shape}")
    return x[0]


def _kernel(x: np.ndarray) -> np.ndarray:
    """torch's weight of a linear layer or a convolution (o i ...) -> (... i o)."""
    return x.transpose(*range(2, x.ndim), 1, 0)


def _weight(x: np.ndarray) -> np.ndarray:
    return x.transpose(x.ndim - 1, x.ndim - 2, *range(x.ndim - 2))


def _pointwise(x: np.ndarray) -> np.ndarray:
    """torch's weight of a 1x1 convolution (o i 1 1) -> the kernel of a linear layer (i o)."""
    if x.shape[2:] != (1, 1):
        raise ValueError(f"expected a 1x1 convolution, got the shape {x.shape}")
    return x[:, :, 0, 0].T


OPERATIONS = {
    "drop_leading_1": _drop_leading_1,
    "add_leading_1": lambda x: x[None],
    "kernel": _kernel,
    "weight": _weight,
    "pointwise": _pointwise,
    "pointwise_weight": lambda x: x.T[:, :, None, None],
}
INVERSE = {"drop_leading_1": "add_leading_1", "kernel": "weight", "pointwise": "pointwise_weight"}
INVERSE |= {back: there for there, back in INVERSE.items()}


def routes(names: Iterable[str], rules: Sequence[Rule]) -> dict[str, tuple[str, str | None]]:
    """{target: (source, operation)}: every source name is rewritten by the first rule that matches it whole.

    Raises ValueError that lists the names no rule takes, and names that two sources would fill.
    """
    compiled = [(re.compile(source), target, *operation) for source, target, *operation in rules]
    found, homeless = {}, []
    for name in names:
        rule = next((rule for rule in compiled if rule[0].fullmatch(name)), None)
        if rule is None:
            homeless.append(name)
            continue
        target = rule[0].sub(rule[1], name)
        if target in found:
            raise ValueError(f'two source parameters become "{target}"; the second is "{name}"')
        found[target] = name, rule[2] if len(rule) > 2 else None
    if homeless:
        raise ValueError(
            f"no rule takes {len(homeless)} source parameters: {', '.join(homeless[:10])}; "
            "is this the right tool for the file?"
        )
    return found


def rename(flat: Mapping[str, np.ndarray], rules: Sequence[Rule]) -> dict[str, np.ndarray]:
    """The arrays by their new names, as `routes` says."""
    operate = lambda operation, x: OPERATIONS[operation](x) if operation else x
    return {target: operate(operation, flat[name]) for target, (name, operation) in routes(flat, rules).items()}


def rename_shapes(shapes: Mapping[str, tuple[int, ...]], rules: Sequence[Rule]) -> dict[str, tuple[int, ...]]:
    """The same of shapes alone; no array is allocated."""
    blank = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    return {name: x.shape for name, x in rename(blank, rules).items()}


def convert(
    flat: Mapping[str, np.ndarray], rules: Sequence[Rule], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """The arrays of a file under our names, whose `shapes` are given.

    Every name is used once and every one of ours filled once; ValueError names, in the file's names, what is missing,
    unknown or of a wrong shape.
    """
    check(flat, rename_shapes(shapes, invert(rules)))
    return rename(flat, rules)


def restore(
    flat: Mapping[str, np.ndarray], rules: Sequence[Rule], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """The inverse of `convert`; ValueError in our names."""
    check(flat, shapes)
    return rename(flat, invert(rules))


def invert(rules: Sequence[Rule]) -> list[Rule]:
    """The rules that lead back. Groups of a source regex must not be nested, and appear in order in the replacement."""
    inverse = []
    for source, target, *operation in rules:
        parts = re.split(r"(\([^()]*\))", source)  # literal, group, literal, ...
        groups = parts[1::2]
        if re.findall(r"\\(\d)", target) != [str(i + 1) for i in range(len(groups))]:
            raise ValueError(f"the rule {source} -> {target} cannot be inverted")
        pieces = re.split(r"\\\d", target)
        regex = "".join(re.escape(p) + g for p, g in zip(pieces, [*groups, ""], strict=True))
        back = "".join(p if i % 2 == 0 else rf"\{i // 2 + 1}" for i, p in enumerate(parts))
        inverse.append((regex, back.replace(r"\.", "."), *(INVERSE[o] for o in operation)))
    return inverse


def check(found: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """ValueError that names what `found` lacks, has too much, or has in another shape than `shapes` says."""
    shape = lambda name: tuple(found[name].shape)
    wrong = [f"{n} is missing" for n in shapes if n not in found]
    wrong += [f"{n} is not part of the model" for n in found if n not in shapes]
    wrong += [f"{n} is {shape(n)} and should be {tuple(shapes[n])}" for n in shapes if n in found and shape(n) != tuple(shapes[n])]
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(f"the file does not fit the model: {'; '.join(sorted(wrong)[:5])}{more}")
