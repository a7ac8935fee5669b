"""A source whose clips and their random views can be numbered, so that what is computed from a view can be kept."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from magvid.data.stream import Record, Transform
from magvid.types import UserError


@dataclasses.dataclass(frozen=True)
class Views:
    """The clips of another source in `views` fixed views each: moments, crops and mirrorings drawn once and for all.

    source: any source. views: per clip. clips: only the first so many; 0: all. transforms: those that make the view,
    e.g. `Augment`; what comes after a view, such as `MaskedView`, stays outside.

    View v of clip i is a pure function of (seed, i, v): `source.read(i, rng)` where it exists, else `source[i]`, then the
    transforms, with one generator. `read(i, rng)` draws v from `rng`, uniformly; `self[i]`, for evaluation, is view 0.
    What else `source` says of its clips (`classes`, `fps`, ...) is said here as well.
    """

    source: Any
    views: int = 1
    clips: int = 0
    transforms: Sequence[Transform] = ()
    seed: int = 0

    def __post_init__(self):
        if self.views < 1 or self.clips < 0 or self.seed < 0:
            raise ValueError(
                f"Views needs at least one view, and clips and seed of at least 0; got views={self.views}, "
                f"clips={self.clips}, seed={self.seed}"
            )
        if self.clips > len(self.source):
            raise ValueError(f"Views.clips={self.clips}, but the source has only {len(self.source)} clips")

    def __len__(self) -> int:
        return self.clips or len(self.source)

    def __getitem__(self, i: int) -> Record:
        return self.view(range(len(self))[i], 0)

    def read(self, i: int, rng: np.random.Generator) -> Record:
        return self.view(i, self.draw(rng))

    def draw(self, rng: np.random.Generator) -> int:
        return int(rng.integers(self.views))

    def view(self, i: int, v: int) -> Record:
        rng = np.random.default_rng((self.seed, i, v))
        record = self.source.read(i, rng) if hasattr(self.source, "read") else self.source[i]
        for transform in self.transforms:
            record = transform(record, rng)
        return record

    @property
    def fingerprint(self) -> str:
        """Changes with the content of the source and with the views; there is none where the source has none."""
        views = [self.views, self.clips, self.seed, *map(repr, self.transforms)]
        return hashlib.sha256(json.dumps([self.source.fingerprint, *views]).encode()).hexdigest()[:16]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "source":  # a copy that is not filled yet
            raise AttributeError(name)
        return getattr(self.source, name)


def count_views(source: Any) -> int:
    """Of each clip: 1 where the source has no views."""
    return source.views if isinstance(source, Views) else 1


def check_views(source: Any) -> None:
    """UserError for a source that draws the clips of training anew each time. Evaluation reads source[i] alone."""
    if not isinstance(source, Views) and hasattr(source, "read"):
        raise UserError(
            f"{type(source).__name__} draws another view of a clip each time, so that nothing of it can be kept: put "
            "magvid.data.views:Views around it (in many configs the argument views=8, or clips=20000)"
        )


def take_view(source: Any, i: int, v: int) -> Record:
    """View v of clip i; the only view of a source without views is source[i]."""
    return source.view(i, v) if isinstance(source, Views) else source[i]
