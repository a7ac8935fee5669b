"""Tokens in place of videos (see cache.py).

A row holds all tasks of a clip's view: the label (int32), the ids, and the condition ids of each task, (1 + tasks, t', h', w')
of uint16, or of uint32 for a codebook that needs it, little-endian.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from jaxtyping import UInt

from magvid.data.cache import Cache, CacheRecord, plain
from magvid.data.stream import Record
from magvid.types import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenRecord(CacheRecord):
    """What the tokens in a folder are; `latent` is (t', h', w')."""

    tokenizer: dict  # {"run", "weights", "hash" of the weights, "spec"}
    tasks: Sequence[dict]  # {"name", "given", "pad"}: what each shows of a clip
    codes: int  # ids lie in [0, codes)
    labelled: bool  # whether the clips have labels

    what, version, encoder, parts = "tokens", 1, "tokenizer", "tasks"
    equal = ("clip", "latent", "codes", "labelled")

    def differences(self, other: Self) -> list[str]:
        found = super().differences(other)
        there = {task["name"]: plain(task) for task in self.tasks}
        for task in other.tasks:
            if task["name"] not in there:
                found.append(f"task {task['name']} is not there, which has {', '.join(there)}")
            elif there[task["name"]] != plain(task):
                found.append(f"task {task['name']} shows something else of a clip there")
        return found

    @property
    def contents(self) -> str:
        return ", ".join(task["name"] for task in self.tasks)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype("<u2" if self.codes <= 2**16 else "<u4")

    @property
    def row_bytes(self) -> int:
        return 4 + (1 + len(self.tasks)) * int(np.prod(self.latent)) * self.dtype.itemsize

    def shown(self, record: Record, told: Record) -> Record:
        return {key: record[key] for key in ("video", "label") if key in record}

    def pack(self, label: int, tokens: UInt[np.ndarray, "n th hh wh"]) -> bytes:
        return np.asarray(label, "<i4").tobytes() + tokens.astype(self.dtype, copy=False).tobytes()

    def unpack(self, row: bytes) -> tuple[np.int32, UInt[np.ndarray, "n th hh wh"]]:
        tokens = np.frombuffer(row, self.dtype, offset=4).reshape(1 + len(self.tasks), *self.latent)
        return np.frombuffer(row, "<i4", 1)[0], tokens


class TokenCache(Cache):
    """A source of tokens. The transform `lookup` comes after the task is drawn; then a record has "ids" and "cond_ids"
    (t' h' w') and "label", and no "video".
    """

    def __init__(self, source: Any, folder: str | os.PathLike, wanted: TokenRecord):
        super().__init__(source, folder, wanted)
        names = [task["name"] for task in self.record.tasks]
        self._columns = [1 + names.index(task["name"]) for task in wanted.tasks]

    @property
    def last(self):
        return (self.lookup,)

    def view(self, clip: int, view: int) -> Record:
        return {"clip": clip, "view": view}

    def lookup(self, record: Record, rng: np.random.Generator) -> Record:
        """The transform that puts the tokens of a record's clip, view and task in place of the first two."""
        if "task" not in record:
            raise UserError("tokens are those of a task: add magvid.data.pipeline:MaskedView to the data's transforms")
        rest = {key: value for key, value in record.items() if key not in ("clip", "view")}
        label, tokens = self.row(record["clip"], record["view"])
        found = {"ids": tokens[0], "cond_ids": tokens[self._columns[record["task"]]]}
        return rest | found | ({"label": label} if self.record.labelled else {})
