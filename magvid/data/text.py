"""Text for training: tokenizers that turn a record's text into `text_ids`, without a download or with a published one.

Both are transforms of the data pipeline, and have `encode(text) -> ids (n,)`, the fixed `length` n, and `null`, the ids of
the empty text, which stand in the record as `null_ids`: condition dropout and guidance put them in place of a caption. `Also` adds
the ids of another entry by the same tokenizer.
"""

import dataclasses
import functools
import json
import pathlib
import re
import string
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32

from magvid.data.stream import Record
from magvid.types import UserError

PAD, BOS, UNK, FIRST = 0, 1, 2, 3  # then the words, and EOS last: CLIP pools at the highest id


def split_words(text: str) -> list[str]:
    """Lower-case words, single digits and single signs: "Turned by 12 degrees," -> turned by 1 2 degrees ,"""
    return re.findall(r"[^\W\d_]+|\d|[^\w\s]|_", text.lower())


def words_of(texts: Iterable[str]) -> tuple[str, ...]:
    """Every word of the texts once, sorted: a vocabulary."""
    return tuple(sorted({word for text in texts for word in split_words(text)}))


class Tokenizer:
    """What the tokenizers share. `key` is the entry of the record that is read: a text, or several (ids (s n))."""

    def encode(self, text: str) -> Int32[np.ndarray, "n"]:
        raise NotImplementedError

    def count(self, text: str) -> int:
        """How many ids the whole text would have; more than `length` are cut."""
        return len(self.encode(text))

    @functools.cached_property
    def null(self) -> Int32[np.ndarray, "n"]:
        return self.encode("")

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        if self.key not in record:
            raise ValueError(f"the record has no {self.key!r} to tokenize; it has {', '.join(record)}: set `key`")
        text = record[self.key]
        ids = self.encode(text) if isinstance(text, str) else np.stack([self.encode(t) for t in text])
        return record | {"text_ids": ids, "null_ids": self.null}


@dataclasses.dataclass(frozen=True)
class WordTokenizer(Tokenizer):
    """[BOS, words, EOS, PAD, ...] over a closed list of words; `size` ids, of which EOS is the last.

    ValueError for a word that is not listed (with `unknown`, UNK stands for it), and for a text that is too long.
    """

    words: tuple[str, ...]
    length: int
    key: str = "text"
    unknown: bool = False

    def __post_init__(self):
        object.__setattr__(self, "words", tuple(self.words))
        if len(set(self.words)) < len(self.words) or not self.words:
            raise ValueError("words must be a list of different words, at least one; see words_of")
        if strange := [w for w in self.words if split_words(w) != [w]]:
            raise ValueError(f"words has {strange[:5]}, which no text is split into: lower case, no spaces, single digits")
        if self.length < 2:
            raise ValueError(f"length={self.length}: BOS and EOS need 2 places")

    @property
    def size(self) -> int:
        return FIRST + len(self.words) + 1

    @property
    def eos(self) -> int:
        return self.size - 1

    @functools.cached_property
    def numbers(self) -> dict[str, int]:
        return {word: FIRST + i for i, word in enumerate(self.words)}

    def encode(self, text: str) -> Int32[np.ndarray, "n"]:
        found = split_words(text)
        missing = [word for word in found if word not in self.numbers]
        if missing and not self.unknown:
            lacks = " and ".join(f'"{word}"' for word in dict.fromkeys(missing))
            some = " ".join(self.words[:40]) + (" ..." if len(self.words) > 40 else "")
            raise ValueError(f'the vocabulary of {len(self.words)} words lacks {lacks} of "{text}": it has {some}')
        if len(found) + 2 > self.length:
            raise ValueError(f'"{text}" has {len(found)} words, and length={self.length} has room for {self.length - 2}')
        ids = [BOS, *(self.numbers.get(word, UNK) for word in found), self.eos]
        return np.asarray(ids + [PAD] * (self.length - len(ids)), np.int32)

    def decode(self, ids: Int32[np.ndarray, "n"]) -> str:
        """The words, without BOS, EOS and PAD; `?` for UNK."""
        names = {UNK: "?"} | {number: word for word, number in self.numbers.items()}
        return " ".join(names[int(i)] for i in ids if int(i) in names)


@dataclasses.dataclass(frozen=True)
class HFTokenizer(Tokenizer):
    """A tokenizer of the transformers library from a local `folder` (Stable Diffusion's `tokenizer/`), padded and cut to
    `length`. Nothing is downloaded. UserError where the package or the folder is missing.
    """

    folder: str
    length: int = 77
    key: str = "text"

    def encode(self, text: str) -> Int32[np.ndarray, "n"]:
        found = _load(self.folder)(text, padding="max_length", truncation=True, max_length=self.length)
        return np.asarray(found["input_ids"], np.int32)

    def count(self, text: str) -> int:
        return len(_load(self.folder)(text, verbose=False)["input_ids"])

    @property
    def size(self) -> int:
        return len(_load(self.folder))


@functools.lru_cache(maxsize=4)  # not in the dataclass: worker processes load their own
def _load(folder: str) -> Any:
    path = pathlib.Path(folder).expanduser()
    if not path.is_dir():
        raise UserError(f"there is no tokenizer folder {folder}: it stands beside the weights of a text encoder")
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise UserError(
            f'published tokenizers need transformers, which cannot be imported ({error}): pip install -e ".[convert]"'
        ) from error
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} does not hold a tokenizer that transformers can read ({error})") from error


@dataclasses.dataclass(frozen=True)
class Also:
    """Adds `into`_ids: ids of the texts in another entry of the record (a text, or several: (s n)), by a tokenizer."""

    tokenizer: Tokenizer
    key: str = "states"
    into: str = "state"

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        found = dataclasses.replace(self.tokenizer, key=self.key)(record, rng)
        return record | {f"{self.into}_ids": found["text_ids"]}


@dataclasses.dataclass(frozen=True)
class Captions:
    """Adds `text`: the caption of the record's `file` in a file of lines {"file": "cats/a.mp4", "caption": "..."}, the one that
    VideoFolder reads; of several lines of one file, one at random. UserError where the file cannot be read, or says nothing about a record.
    """

    path: str

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        name = str(record.get("file", ""))
        if name not in self.texts:
            raise UserError(f'{self.path} has no text of "{name}": add a line {{"file": "{name}", "caption": "..."}}')
        texts = self.texts[name]
        return record | {"text": texts[int(rng.integers(len(texts)))] if len(texts) > 1 else texts[0]}

    @functools.cached_property
    def texts(self) -> dict[str, list[str]]:
        path, found = pathlib.Path(self.path).expanduser(), {}
        if not path.is_file():
            raise UserError(f'there are no captions {self.path}: give a file of lines {{"file": "cats/a.mp4", "caption": "..."}}')
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            try:
                if line.strip():
                    row = json.loads(line)
                    found.setdefault(str(row["file"]), []).append(str(row["caption"]))
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f'{self.path} line {number} is not {{"file": "...", "caption": "..."}} ({error})') from None
        return found


@dataclasses.dataclass(frozen=True)
class OneOf:
    """Sets `text`: one of several texts of the record, such as a long and a short one, each as likely. UserError where it lacks one."""

    keys: Sequence[str]

    def __post_init__(self):
        if not self.keys:
            raise ValueError("keys=(): name the texts, one of which is drawn")

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        if missing := [key for key in self.keys if not isinstance(record.get(key), str)]:
            raise UserError(f'the record has no text "{missing[0]}"; it has {", ".join(record)}')
        return record | {"text": record[self.keys[int(rng.integers(len(self.keys)))]]}


@dataclasses.dataclass(frozen=True)
class Template:
    """Sets `text`: the template with the record's strings in place of their names in braces, "a horse {action}"; one without
    braces is the text of every record, "horse movement". UserError for a name that is not one of the record's strings,
    ValueError for braces that hold no name.
    """

    template: str

    def __post_init__(self):
        if wrong := [name for name in self.names if not name.isidentifier()]:
            raise ValueError(f'"{self.template}" has "{{{wrong[0]}}}": braces hold the name of an entry, such as {{action}}')

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """In the template."""
        try:
            parts = list(string.Formatter().parse(self.template))
        except ValueError as error:
            raise ValueError(f'"{self.template}" is no template ({error}): a brace that is meant is written twice') from None
        return tuple(name for _, name, _, _ in parts if name is not None)

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        strings = {key: value for key, value in record.items() if isinstance(value, str)}
        if missing := [name for name in self.names if name not in strings]:
            there = ", ".join(strings) or "none"
            raise UserError(f'"{self.template}" needs a text "{missing[0]}" of each record; its texts are: {there}')
        return record | {"text": self.template.format(**strings)}


@dataclasses.dataclass(frozen=True)
class DistinctTexts:
    """The first `count` records of a source whose texts differ from those before: a gallery in which every text has one
    right answer. UserError where the first `search` records have fewer.
    """

    source: Any
    count: int
    key: str = "text"
    search: int = 10_000

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Record:
        return self.source[self.numbers[range(self.count)[i]]]

    @functools.cached_property
    def numbers(self) -> tuple[int, ...]:
        """Of the records in the source."""
        found: dict[str, int] = {}
        for i in range(min(self.search, len(self.source))):
            found.setdefault(self.source[i][self.key], i)
            if len(found) == self.count:
                return tuple(found.values())
        raise UserError(f"{self.count} records of different {self.key} were asked for, but there are {len(found)}")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "source":  # a copy that is not filled yet
            raise AttributeError(name)
        return getattr(self.source, name)
