"""Videos of an entity that pictures show, in which happens what a text says (MagDiff)."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from magvid import conditions, runs
from magvid.data.entities import Entities, centred, placed, subject_of
from magvid.generator import Generator, clip_format
from magvid.runs import ClipFormat
from magvid.types import UserError
from magvid.video import upscale, write_video


@dataclasses.dataclass(frozen=True)
class Options:
    """What is shown and told, as the flags of `magvid compose` say it. None stands for the run's own."""

    entity: Sequence[str]  # files: pictures with transparency around the subject, or PICTURE,MASK
    prompt: str
    out: str
    negative: str | None = None
    frames: int | None = None  # of the result; more than a clip's are made window by window
    number: int = 1  # of videos; their files are numbered where there are several
    fps: float | None = None
    size: str | None = None  # "HxW"
    steps: int | None = None
    guidance: float | None = None  # by the text
    image_guidance: float | None = None  # by the pictures
    seed: int = 0
    scale: int = 1

    def __post_init__(self):
        if not self.entity:
            raise ValueError("--entity is missing: give a picture of what shall be shown, with transparency around it, once for each")
        if not (self.prompt or "").strip():
            raise ValueError('--prompt is missing: say what shall be seen, such as --prompt="a dog runs on the beach"')
        ranges = dict(seed=(0, 2**32 - 1), number=(1, 1000), frames=(2, 10000), fps=(0.01, 1000), steps=(1, 1000), scale=(1, 64))
        conditions.check_ranges(self, **ranges, guidance=(0, 1000), image_guidance=(0, 1000))
        conditions.check_size(self.size)
        conditions.check_out(self.out, *(file for entity in self.entity for file in files_of(entity)))


def compose(run: runs.Run, options: Options, *, weights: str | None = None, trust: bool = False) -> list[pathlib.Path]:
    """Writes the videos and returns where. UserError or ValueError, before anything is generated, for a run that is told no entity, more
    pictures than it has places for, a file that cannot be read or shows no subject.
    """
    runs.check_writable(pathlib.Path(options.out).expanduser().parent, "--out")
    told = told_of(run)
    clip = conditions.sized(clip_format(run), options.size)
    if not told.entities.segmented:
        print(f"{run.path} was trained on whole frames (segmented=0): it never saw a subject that is cut out")
    pictures = np.concatenate([picture_of(entity, told.size(clip), told.entities.centre) for entity in options.entity])
    shown, valid = told.placed(pictures, clip.frames)
    words = conditions.words(told.tokenizer, options.prompt, options.negative or "")
    row = conditions.blank(clip) | words | {"entities": shown[None], "entity_valid": valid[None]}
    model = Generator.open(
        run, decoding=conditions.decoding(options), batch=min(options.number, conditions.NUMBER), weights=weights, like=row, trust=trust
    )
    numbers = {"index": np.arange(options.number), "task": np.zeros(options.number, np.int32)}
    rows = {name: np.repeat(value, options.number, axis=0) for name, value in row.items()} | numbers
    made = model.generate(rows, options.seed) if options.frames is None else model.extend(rows, options.frames, None, options.seed)
    files = conditions.numbered(options.out, options.number)
    for path, video in zip(files, made, strict=True):
        write_video(path, upscale(video, options.scale), options.fps or clip.fps or conditions.FPS)
    return files


# What a run is told of an entity ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Told:
    """How a run's data make an entity's pictures: the transforms that do, and the sizes at which they are read."""

    run: runs.Run
    entities: Entities
    tokenizer: Any
    levels: Sequence[float]

    def size(self, clip: ClipFormat) -> tuple[int, int]:
        """Of the pictures, in pixels."""
        return tuple(round(side * self.levels[0]) for side in (clip.height, clip.width))

    def placed(self, pictures: UInt8[np.ndarray, "n h w 3"], frames: int) -> tuple[np.ndarray, np.ndarray]:
        """See `data.entities.placed`. Says where there are more pictures than the run has seen at a time."""
        if len(pictures) > frames:
            raise UserError(f"{len(pictures)} pictures of an entity are given, and {self.run.path} has a place for {frames}: leave some out")
        if len(pictures) > self.entities.references[1]:
            print(f"{len(pictures)} pictures of an entity: the run was trained on at most {self.entities.references[1]}")
        return placed(pictures, frames)


def told_of(run: runs.Run) -> Told:
    """UserError for a run that is told no entity, or no text."""
    entities, tokenizer = conditions.find_transform(run.config, Entities), conditions.find_tokenizer(run.config)
    if entities is None or tokenizer is None:
        raise UserError(f"{run.path} is not told of an entity in pictures and words: give a run of configs/magdiff_*.py")
    levels = [spec["levels"] for spec in run.config["objective"].get("conditioners", ()) if "levels" in spec]
    return Told(run, entities, tokenizer, levels[0] if levels else (1.0,))


def files_of(entity: str) -> list[str]:
    """The picture, or the picture and its mask. There are files whose names have a comma."""
    if "," not in entity or pathlib.Path(entity).expanduser().is_file():
        return [entity]
    files = list(entity.rpartition(",")[::2])
    if not all(files):
        raise ValueError(f"--entity={entity}: give PICTURE or PICTURE,MASK")
    return files


def picture_of(entity: str, size: tuple[int, int], centre: bool) -> UInt8[np.ndarray, "1 h w 3"]:
    """The subject of a file, or of PICTURE,MASK, as `data.entities.subject_of` has it."""
    file, *mask_file = files_of(entity)
    path, mask = conditions.existing(file, "picture"), conditions.existing(mask_file[0], "mask") if mask_file else None
    shown, place = subject_of(path, mask, size, lambda text: print(f"{text}: --entity={file},MASK"))
    return centred(shown, place) if centre else shown
