"""EPIC-Kitchens-100: what people do in their kitchens, filmed by a camera on the head, each action with its narration (Damen et al.,
IJCV 2022, https://arxiv.org/abs/2006.13256).

    EPIC-KITCHENS/                                  what epic_downloader.py --videos makes
        P01/videos/P01_01.MP4 ...                   700 videos
        epic-kitchens-100-annotations/              the repository of this name
            EPIC_100_train.csv                      a row for each action: narration_id P01_11_0, participant_id P01, video_id P01_11,
            EPIC_100_validation.csv                 start_timestamp 00:00:00.00, stop_timestamp 00:00:01.89, start_frame, stop_frame,
                                                    narration "take plate", verb, verb_class 0, noun, noun_class, ...
            EPIC_100_verb_classes.csv               id, key: the names of the 97 classes
            EPIC_100_test_timestamps.csv            without narrations; not read

Read in github.com/epic-kitchens/epic-kitchens-100-annotations at ea8b404 (README.md; EPIC_100_validation.csv itself, 9,668 rows, and
EPIC_100_verb_classes.csv; EPIC_100_train.csv was too large to be at hand, the README says that it has the same columns) and
github.com/epic-kitchens/epic-kitchens-download-scripts (README.md at 1e01ecb, epic_downloader.py at 044fdd2: the folders). The videos
themselves were not at hand.

start_frame and stop_frame count the extracted frames of the archive, P01/rgb_frames/P01_01.tar, which are not read: seconds hold for
the videos, also after they were made smaller or got another frame rate.
"""

import csv
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence

from magvid.data.folder import InstructionFolder, Told
from magvid.data.source import instruction
from magvid.types import UserError

SPLITS = ("train", "validation")
ANNOTATIONS = "epic-kitchens-100-annotations"
COLUMNS = ("narration_id", "participant_id", "video_id", "start_timestamp", "stop_timestamp", "narration", "verb_class")


class EpicKitchens(InstructionFolder):
    """Source of uint8 clips (frames height width 3) of the actions in EPIC-Kitchens-100 in the folder `path`, EPIC-KITCHENS.

    split: the archive's "train" or "validation", None for both ("test" has no narrations); only its videos are indexed, which decodes
    each of them once. annotations: the folder of the csv files, by default epic-kitchens-100-annotations in `path`. All else: see
    `VideoFolder`, where the segment of an action takes the place of a file: its frames are those from the one on screen at
    start_timestamp to the one at stop_timestamp, and `spread` is from the first to the last of these. Reading one decodes the video
    from the key frame before the clip to the clip's end.

    A record is that of an `InstructionFolder`; label: verb_class, whose names are `classes`; text: the narration, "take plate"; file:
    "P01/videos/P01_11.MP4#P01_11_0", of the narration P01_11_0 in this video; digest: of the video and the segment's timestamps. An
    action without a narration is left out. UserError where the archive is not there or is laid out otherwise.
    """

    noun = "actions"

    def __init__(
        self,
        path: str | os.PathLike,
        frames: int,
        height: int,
        width: int,
        *,
        split: str | None = None,
        annotations: str | os.PathLike | None = None,
        fps: float | None = None,
        stride: int = 1,
        crop: str = "random",
        windows: int = 0,
        index: str | os.PathLike | None = None,
        keep_aspect: bool = True,
        spread: bool = True,
    ):
        if split not in (None, *SPLITS):
            raise ValueError(f'split must be "train", "validation" or None, got {split!r}: the test videos have no narrations')
        path = pathlib.Path(path).expanduser()
        told, classes = read_annotations(path / ANNOTATIONS if annotations is None else annotations, [split] if split else SPLITS)
        if not any(path.glob("P*/videos")):
            raise UserError(f"there is no folder {path}/P01/videos or of another participant: `path` is EPIC-KITCHENS with the videos")
        reading = dict(fps=fps, stride=stride, crop=crop, windows=windows, keep_aspect=keep_aspect, spread=spread)
        super().__init__(path, frames, height, width, told, classes, index=index, **reading)


def read_annotations(folder: str | os.PathLike, splits: Iterable[str] = SPLITS) -> tuple[dict[str, Told], tuple[str, ...]]:
    """What the csv files say of the actions of these splits, by their names, and the classes of verbs. UserError naming the file that
    is not there or is something else.
    """
    folder = pathlib.Path(folder).expanduser()
    classes, told = [], {}
    for where, row in _rows(folder / "EPIC_100_verb_classes.csv", ("id", "key")):
        if row["id"] != str(len(classes)):
            raise UserError(f'{where}: id should be {len(classes)}, got "{row["id"]}"')
        classes.append(row["key"])
    for split in splits:
        for where, row in _rows(folder / f"EPIC_100_{split}.csv", COLUMNS):
            file = f"{row['participant_id']}/videos/{row['video_id']}.MP4"
            if not row["verb_class"].isdecimal() or int(row["verb_class"]) >= len(classes):
                raise UserError(f'{where}: verb_class should be a number from 0 to {len(classes) - 1}, got "{row["verb_class"]}"')
            part = tuple(_seconds(where, name, row[name]) for name in ("start_timestamp", "stop_timestamp"))
            told[f"{file}#{row['narration_id']}"] = Told(file, int(row["verb_class"]), instruction(row["narration"]), part)
    return told, tuple(classes)


def _rows(file: pathlib.Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Where each row stands, and what it has in these columns. UserError where there is none."""
    if not file.is_file():
        raise UserError(
            f"there is no file {file}: git clone https://github.com/epic-kitchens/{ANNOTATIONS} into the folder EPIC-KITCHENS, or say "
            "where it is (`annotations`)"
        )
    k = 1
    with open(file, encoding="utf-8", errors="replace", newline="") as stream:
        reader = csv.DictReader(stream)
        if missing := [name for name in columns if name not in (reader.fieldnames or ())]:
            raise UserError(f"{file} has no column {', '.join(missing)}; it has {', '.join(reader.fieldnames or ['none'])[:200]}")
        for k, row in enumerate(reader, 2):
            yield f"{file} row {k}", {name: (row[name] or "").strip() for name in columns}
    if k == 1:
        raise UserError(f"{file} has no rows: download it again")


def _seconds(where: str, name: str, text: str) -> float:
    """00:01:02.50 -> 62.5"""
    if not (found := re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d*)?)", text)):
        raise UserError(f'{where}: {name} should be like 00:00:01.89, got "{text}"')
    hours, minutes, seconds = map(float, found.groups())
    return 3600 * hours + 60 * minutes + seconds
