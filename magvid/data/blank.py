"""A config's data without its files: records of the same entries, shapes and types, to plan a run where there is none of its data."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from magvid.build import build
from magvid.data.stream import Record, Stream, choose_keys

TEXTS = ("text", "caption", "instruction", "action", "motion")


@dataclasses.dataclass(frozen=True)
class Blank:
    """One black clip with texts of no words; with `masks`, in which everything is masked."""

    height: int
    width: int
    frames: int = 1  # a picture
    masks: bool = False

    def __len__(self) -> int:
        return 1

    def __getitem__(self, i: int) -> Record:
        shape = (self.frames, self.height, self.width)
        masks = {"masks": np.ones(shape, bool)} if self.masks else {}
        return {"video": np.zeros((*shape, 3), np.uint8), "label": 0, **masks, **dict.fromkeys(TEXTS, "")}


@dataclasses.dataclass(frozen=True)
class BlankIds:
    """In place of a tokenizer whose vocabulary is a file."""

    length: int = 77
    key: str = "text"

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        count = () if isinstance(record[self.key], str) else (len(record[self.key]),)
        return record | {"text_ids": np.zeros((*count, self.length), np.int32), "null_ids": np.zeros(self.length, np.int32)}


def example(data: Mapping[str, Any], objective: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """What stands in a batch of `data` (a split of a config: source, transforms) for one clip, each with a first axis of 1.

    `objective` says how many predicted states are told, where a file holds them.
    """
    states, masks = next(_values(objective, "states"), 1), any(str(target).endswith(":Entities") for target in _values(data, "target"))
    source = build(_without_files(data["source"], states, masks))
    transforms = build(_without_files(tuple(data.get("transforms", ())), states, masks))
    stream = Stream(source, seed=0, transforms=transforms)
    return {key: np.zeros((1, *shape), dtype) for key, (shape, dtype) in choose_keys(stream, None).items()}


def _without_files(spec: Any, states: int, masks: bool) -> Any:
    """A source or transform, and what it is made of, in whose place stands one of the same shape where it reads files."""
    if isinstance(spec, (list, tuple)):
        return type(spec)(_without_files(x, states, masks) for x in spec)
    if not isinstance(spec, Mapping):
        return spec
    name = spec.get("target", "").rpartition(":")[2]
    here = "magvid.data.blank:"
    if {"height", "width"} <= set(spec) and name not in ("Sprites", "Resize"):
        return {"target": f"{here}Blank", "masks": masks} | {k: spec[k] for k in ("height", "width", "frames") if k in spec}
    if name == "HFTokenizer":
        return {"target": f"{here}BlankIds"} | {k: spec[k] for k in ("length", "key") if k in spec}
    if name == "States":
        return {"target": "magvid.data.states:Repeated", "count": states, "key": spec.get("key", "text")}
    if name == "Captions":
        return {"target": "magvid.data.text:Template", "template": ""}
    clips = {"clips": 0} if name == "Views" else {}
    return {k: _without_files(v, states, masks) for k, v in spec.items()} | clips


def _values(spec: Any, name: str) -> Iterator[Any]:
    """Of every field `name` in a spec."""
    if isinstance(spec, Mapping) and isinstance(spec.get(name), (int, str)):
        yield spec[name]
    for child in spec.values() if isinstance(spec, Mapping) else spec if isinstance(spec, (list, tuple)) else ():
        yield from _values(child, name)
