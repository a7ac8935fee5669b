"""What will be seen at S moments of a video, in words: the future states of its scene, as tools/predict_states.py has had them
predicted, or in their place the instruction.

AID (Xing et al., 2024, arXiv 2406.06465) shows a multimodal language model the first frame of a video and an instruction, and
asks it for the states of the scene from the beginning to the end; its ablation without that model has the instruction alone.

The file is json: the settings of the prediction; what tools/predict_states.py --score has measured, if it has; and for each
pair of a video's content and an instruction the S texts, and whether a model wrote them. A video is known by its content
alone: all windows of it have the same states, which are those of the frame that the model was shown.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from magvid.data.stream import Record
from magvid.types import UserError

FORMAT = "magvid.states/1"
TOOL = "tools/predict_states.py"
MODEL, INSTRUCTION = "model", "instruction"  # how the states of a record came about


class Predicted(NamedTuple):
    """The states of one video under one instruction. file: its name, for people; the key is what finds it. how: MODEL, or
    INSTRUCTION where no answer of the model was of use and the instruction is repeated. tries: how often it was asked.
    """

    file: str
    instruction: str
    states: tuple[str, ...]
    how: str
    tries: int


@dataclasses.dataclass
class StateFile:
    """settings: {"model", "count": S, "prompt", ...}; states: {state_key: Predicted of S texts}; score: what was measured of
    them, None where nothing was.
    """

    settings: dict[str, Any]
    states: dict[str, Predicted] = dataclasses.field(default_factory=dict)
    score: dict[str, Any] | None = None

    @classmethod
    def load(cls, file: str | os.PathLike) -> "StateFile":
        """UserError where the file is not there, is another one, or is damaged."""
        path = pathlib.Path(file).expanduser()
        if not path.is_file():
            raise UserError(f"there is no file {path}: {TOOL} writes it, once for the videos of a config or a folder")
        try:
            content = json.loads(path.read_text("utf-8"))
            if content["format"] != FORMAT:
                raise ValueError(f"its format is {content['format']}, not {FORMAT}")
            count, score = content["settings"]["count"], content.get("score")
            if score is not None and not isinstance(score, dict):
                raise ValueError("its score is no table")
            return cls(content["settings"], {k: _predicted(count, **row) for k, row in content["states"].items()}, score)
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror or error}): check its permissions and its disk") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is not what {TOOL} writes, or damaged ({error!r}): make it again") from error

    def save(self, file: str | os.PathLike) -> None:
        """Replaces the file at once. UserError where it cannot be written; what was there then still is."""
        path = pathlib.Path(file).expanduser()
        rows = ",\n".join(f"{json.dumps(key)}: {json.dumps(self.states[key]._asdict())}" for key in sorted(self.states))
        head = {"format": FORMAT, "settings": self.settings} | ({} if self.score is None else {"score": self.score})
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(f'{json.dumps(head)[:-1]}, "states": {{\n{rows}\n}}}}\n', "utf-8")
            os.replace(partial, path)
        except OSError as error:
            raise UserError(
                f"{path} cannot be written ({error.strerror or error}): make room or give another --out; what it held before is kept"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()


def _predicted(count: int, file: str, instruction: str, states: list[str], how: str, tries: int) -> Predicted:
    texts = [file, instruction, *states]
    if not isinstance(states, list) or len(states) != count or how not in (MODEL, INSTRUCTION) or type(tries) is not int:
        raise ValueError(f"an entry is not {count} states with how and tries")
    if not all(isinstance(text, str) for text in texts) or not all(state.strip() for state in states):
        raise ValueError(f"the states of {file} are no texts")
    return Predicted(file, instruction, tuple(states), how, tries)


# What is known by what ----------------------------------------------------------------------------------------------


def state_key(digest: str, instruction: str) -> str:
    """32 hex digits of a video's content and an instruction, whose white space does not matter."""
    return hashlib.sha256(f"{digest}\n{' '.join(instruction.split())}".encode(errors="surrogatepass")).hexdigest()[:32]


def digest_of(record: Record) -> str:
    """The record's `digest`, which a source knows whose videos are files; else one of the first frame of its `video`, uint8
    (t h w 3). UserError where it has neither.
    """
    if isinstance(record.get("digest"), str):
        return record["digest"]
    if "video" not in record:
        raise UserError(f"the record has neither digest nor video, by which its states are known; it has {', '.join(record)}")
    frame = np.ascontiguousarray(record["video"][0])
    return hashlib.sha256(f"{frame.dtype} {frame.shape}\n".encode() + frame.tobytes()).hexdigest()


# Transforms ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class States:
    """Adds `states`: the S texts that tools/predict_states.py has written to `path` for the record's video and instruction.

    key: the entry of the record that is the instruction. fallback: where the file has none, the instruction S times;
    otherwise UserError. A record without `digest` is known by its first frame: this goes before what changes `video`.
    """

    path: str
    key: str = "text"
    fallback: bool = False

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        instruction = _instruction(record, self.key)
        found = self.predicted.states.get(state_key(digest_of(record), instruction))
        if found:
            return record | {"states": found.states}
        if self.fallback:
            return record | {"states": (instruction,) * self.predicted.settings["count"]}
        name = record.get("file") or f"record {record.get('index', '')}".strip()
        raise UserError(
            f'{self.path} has no states of {name} with the instruction "{instruction}": run python {TOOL} --config=... '
            f"--out={self.path} with the model that it was made with (clips to evaluate on: --split=eval --limit=N for as many as are evaluated), or "
            "set fallback=True to repeat the instruction"
        )

    @functools.cached_property
    def predicted(self) -> StateFile:
        return StateFile.load(self.path)

    def __reduce__(self):
        return States, (self.path, self.key, self.fallback)  # worker processes read the file themselves


@dataclasses.dataclass(frozen=True)
class Repeated:
    """Adds `states`: the record's instruction, its entry `key`, `count` times: AID without its language model."""

    count: int
    key: str = "text"

    def __post_init__(self):
        if self.count < 1:
            raise ValueError(f"count={self.count}: at least one state")

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        return record | {"states": (_instruction(record, self.key),) * self.count}


def _instruction(record: Record, key: str) -> str:
    if not isinstance(record.get(key), str):
        texts = ", ".join(name for name, value in record.items() if isinstance(value, str)) or "none"
        raise UserError(f'the record has no text "{key}", the instruction of its states; its texts are: {texts}; set `key`')
    return record[key]
