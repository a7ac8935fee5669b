"""Models of transformers, of the hub or of a folder, as tools ask them: found and loaded, or a sentence that says what is wrong, and
asked about as many pictures at a time as memory allows.
"""

import contextlib
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from magvid.types import UserError


def imported(*names: str) -> tuple[Any, ...]:
    """torch, and what has these names in transformers."""
    try:
        import torch
        import transformers

        return torch, *(getattr(transformers, name) for name in names)
    except (ImportError, RuntimeError) as error:  # the latter where torch and torchvision do not fit each other
        cause = error
        while cause.__cause__ is not None:  # transformers says of a module only that it cannot be imported
            cause = cause.__cause__
        raise UserError(
            f"--model needs torch, the torchvision of the same release, and transformers, which cannot be imported ({first_line(cause)}): "
            'pip install -e ".[parity]"'
        ) from error


def place_of(name: str) -> str:
    """What transformers is told: a folder, which must be there if `name` can be nothing else, or a name of the hub."""
    folder = pathlib.Path(name).expanduser()
    if folder.is_dir():
        return str(folder)
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or folder.exists():
        raise UserError(f"there is no folder {folder}: give that of a model's snapshot (with config.json), or its name on the hub")
    return name


def device_of(torch: Any, name: str | None) -> Any:
    """That of this name; by default a GPU where there is one. UserError where it cannot be used."""
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except Exception as error:  # torch raises whatever comes up
        raise UserError(f"--device={name} cannot be used ({first_line(error)}): give cuda, mps or cpu") from error
    return device


def check_dtype(name: str) -> None:
    if name not in ("auto", "float32", "float16", "bfloat16"):
        raise UserError(f'--dtype must be auto, float32, float16 or bfloat16, got "{name}"')


def dtype_of(torch: Any, name: str) -> Any:
    """What `from_pretrained` is told."""
    return name if name == "auto" else getattr(torch, name)


@contextlib.contextmanager
def loading(name: str, does: str, example: str) -> Iterator[None]:
    """Whatever goes wrong within becomes a UserError. does: what a model is to do; example: the name of one that does."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # what torch, the hub, the tokenizer and the weights' reader raise
        raise UserError(_no_model(name, does, example, error)) from error


def _no_model(name: str, does: str, example: str, error: Exception) -> str:
    if out_of_memory(error):
        return f"memory does not suffice for {name} ({first_line(error)}): give --dtype=bfloat16, --device=cpu or a smaller model"
    if pathlib.Path(name).expanduser().is_dir():
        what = f"{name} holds no model that {does}, or not all of it ({first_line(error)})"
        return f"{what}: give the folder of a whole snapshot, such as that of {example}"
    return (
        f"the model {name} cannot be had ({first_line(error)}): check its name; without a network, download its snapshot "
        f"elsewhere (hf download {name} --local-dir=FOLDER) and give --model=FOLDER"
    )


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class Batches:
    """Asks a model, which is made when it is first needed, about at most `size` pictures at a time, and about fewer from then
    on where memory does not suffice. UserError where it does not suffice for one.
    """

    def __init__(self, make: Callable[[], Callable[..., list]], size: int):
        self.make, self.size, self.model = make, size, None

    def load(self) -> Callable[..., list]:
        self.model = self.model or self.make()
        return self.model

    def __call__(self, frames: Sequence[Any], texts: Sequence[str], *more: Any) -> list:
        """The answer of model(frames, texts, *more) for each frame and its text."""
        model, answers = self.load(), []
        while len(answers) < len(texts):
            part = slice(len(answers), len(answers) + self.size)
            try:
                answers += model(frames[part], texts[part], *more)
            except Exception as error:  # each kind of device has its own
                if not out_of_memory(error):
                    raise
                self._halve(len(texts[part]), error)
        return answers

    def _halve(self, size: int, error: Exception) -> None:
        if size == 1:
            what = " ".join(str(error).split())[:200]
            raise UserError(
                f"memory does not suffice for one picture ({what}): give --dtype=bfloat16, another --device or a smaller --model"
            ) from error
        self.size = size // 2
        print(f"memory does not suffice for {size} pictures at a time: going on with {self.size}", file=sys.stderr)


def out_of_memory(error: BaseException) -> bool:
    """torch.OutOfMemoryError of a GPU; of a CPU, and of other devices, only the words say so."""
    words = str(error).lower()
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or (isinstance(error, RuntimeError) and any(w in words for w in ("out of memory", "not enough memory", "allocate memory")))


def check_settings(out: Any, made: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """UserError where what is there was `made` with other settings than it would be now."""
    if other := [key for key in {**before, **now} if before.get(key) != now.get(key)]:
        before, now = ({key: of.get(key) for key in other} for of in (before, now))
        raise UserError(f"{out} was {made} with {before}, now it is {now}: give another --out, or delete it")
