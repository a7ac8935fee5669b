"""Animal Kingdom's videos of one animal, with what it does in them (Ng et al., CVPR 2022, https://arxiv.org/abs/2204.08129).

    action_recognition/                        of the download, https://sutdcv.github.io/Animal-Kingdom
        AR_metadata.xlsx                       sheet AR, one row per video: video_id, type (train or test), labels,
                                               list_animal_action: "[('Horse', 'Eating'), ('Horse', 'Walking')]"
        dataset/video/ABNMGXGD.mp4 ...         30 100 videos; the download has them as dataset/video.tar.gz

Read in github.com/sutdcv/Animal-Kingdom at 23320fb, below Animal_Kingdom: README.md (the archives),
action_recognition/AR_metadata.xlsx itself (399 videos of "Horse": 384 train, 15 test), README_action_recognition.md and
code/code_new/prepare_dir_AR.sh (what stands in `dataset`, `annotation`). Newer downloads have more columns (list_animal, ...)
and the same ones, as code that reads them shows; columns are therefore found by their names. That video.tar.gz unpacks to
video/ID.mp4 is known from such code only (glob(data_dir/dataset/video/*.mp4)): the archive itself was not at hand.

annotation/train.csv and val.csv ("original_vido_id video_id frame_id path labels", a row per frame) name no animals, and
nothing else that AR_metadata.xlsx does not; they are not read, nor is annotation/df_action.xlsx, which numbers the actions.
"""

import ast
import difflib
import os
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from magvid.data.folder import VideoFolder
from magvid.data.motion import Motion
from magvid.data.source import Cut
from magvid.types import UserError

COLUMNS = ("video_id", "type", "list_animal_action")
SPLITS = (None, "train", "test")


class AnimalKingdom(VideoFolder):
    """Source of uint8 clips (frames height width 3) of the videos of `animal` below `path`, the folder action_recognition.

    animal: a name, or several, as AR_metadata.xlsx has them, upper or lower case: "Horse" (foals are "Horse Young"). split:
    the archive's "train" or "test" (the videos of annotation/val.csv), None for both. All else: see `VideoFolder`; only
    these videos are indexed. Needs openpyxl.

    A record is {"video": uint8 (t h w 3), "label": int32 in [0, len(classes)), "action": str, "text": str, "file": str,
    "digest": str (the SHA-256 of the file)}. action: what the animal does in the video, not always in the clip: "eating and
    walking"; the label is the first of these.
    `classes`: all actions of the animal in both splits. text: the animal and its actions, "horse eating and walking".
    UserError where the archive is not there or is laid out otherwise, and for an animal that it does not have.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        frames: int,
        height: int,
        width: int,
        animal: str | Sequence[str],
        *,
        fps: float | None = None,
        stride: int = 1,
        crop: str = "random",
        split: str | None = None,
        windows: int = 0,
        index: str | os.PathLike | None = None,
        most_stride: int | None = None,
        keep_aspect: bool = True,
        motion: Motion | None = None,
    ):
        if split not in SPLITS:
            raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
        videos = pathlib.Path(path).expanduser() / "dataset/video"
        self._table = _of_animals(read_metadata(path), [animal] if isinstance(animal, str) else animal)
        if not videos.is_dir():
            raise UserError(f"there is no folder {videos}: unpack dataset/video.tar.gz of the download beside itself")
        reading = dict(fps=fps, stride=stride, crop=crop, windows=windows, most_stride=most_stride, keep_aspect=keep_aspect)
        super().__init__(videos, frames, height, width, split=split, index=index, motion=motion, **reading)

    def _listed(self) -> Collection[str]:
        return self._table

    def _labels(
        self, names: Collection[str], present: Collection[str]
    ) -> tuple[tuple[str, ...], Mapping[str, tuple[int, str, tuple[str, ...]]]]:
        classes = tuple(sorted({action for _, _, actions in self._table.values() for action in actions}))
        told = {}
        for name in names:
            _, animal, actions = self._table[name]
            action = " and ".join(filter(None, [", ".join(actions[:-1]), actions[-1]]))
            told[name] = classes.index(actions[0]), action, (f"{animal} {action}",)
        return classes, told

    def _chosen(self, names: list[str], split: str | None, holdout: float) -> list[str]:
        chosen = [name for name in names if split in (None, self._table[name][0])]
        if not chosen:
            raise UserError(f'no usable video of {self.path} is of split "{split}": take the other one, or split=None')
        return chosen

    def cut(self, i: int, cut: Cut) -> dict[str, Any]:
        record = super().cut(i, cut)
        return {("text" if key == "caption" else key): value for key, value in record.items()}


Table = dict[str, tuple[str, str, tuple[str, ...]]]  # file -> split, animal, its actions


def _of_animals(metadata: Mapping[str, tuple[str, list[tuple[str, str]]]], wanted: Sequence[str]) -> Table:
    """The videos with one of the wanted animals, and what these do, in lower case; the first named animal counts as the one
    that is shown.
    """
    there = {animal for _, pairs in metadata.values() for animal, _ in pairs}
    wanted = [animal.lower() for animal in wanted]
    if unknown := [animal for animal in wanted if animal not in there]:
        near = difflib.get_close_matches(unknown[0], sorted(there), 3, 0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else f", of {len(there)} animals"
        raise UserError(f'no video of Animal Kingdom has the animal "{unknown[0]}"{hint}')
    table = {}
    for video_id, (split, pairs) in metadata.items():
        of = [(animal, action) for animal, action in pairs if animal in wanted]
        if of:
            table[f"{video_id}.mp4"] = split, of[0][0], tuple(dict.fromkeys(action for _, action in of))
    return table


def read_metadata(path: str | os.PathLike) -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """AR_metadata.xlsx of the folder -> {video_id: (split, [(animal, action), ...])}, in lower case.

    UserError naming the file and what was expected of it."""
    file = pathlib.Path(path).expanduser() / "AR_metadata.xlsx"
    if not file.is_file():
        raise UserError(
            f"there is no file {file}: `path` is the folder action_recognition of Animal Kingdom's download "
            "(https://sutdcv.github.io/Animal-Kingdom)"
        )
    rows = _rows(file)
    header = next(rows, ())
    if missing := [name for name in COLUMNS if name not in header]:
        raise UserError(f"sheet AR of {file} has no column {', '.join(missing)}; it has {', '.join(map(str, header))}")
    columns, found = [header.index(name) for name in COLUMNS], {}
    for number, row in enumerate(rows, 2):
        video_id, split, cell = (row[column] for column in columns)
        if video_id is None:
            continue
        if split not in SPLITS[1:]:
            raise UserError(f'{file} row {number}: type is "{split}", expected train or test')
        found[str(video_id)] = split, [(animal.lower(), action.lower()) for animal, action in _pairs(file, number, cell)]
    return found


def _rows(file: pathlib.Path) -> Any:
    """Of the sheet AR."""
    try:
        import openpyxl
    except ImportError as error:
        raise UserError(
            f'{file.name} needs openpyxl, which cannot be imported ({error}): pip install -e ".[xlsx]"'
        ) from error
    try:
        book = openpyxl.load_workbook(file, read_only=True, data_only=True)
    except Exception as error:  # whatever a zip of XML can be wrong in
        raise UserError(f"{file} cannot be read as an .xlsx file ({error!r}): download it again") from error
    if "AR" not in book.sheetnames:
        raise UserError(f"{file} has no sheet AR; it has {', '.join(book.sheetnames)}")
    return book["AR"].iter_rows(values_only=True)


def _pairs(file: pathlib.Path, number: int, cell: Any) -> list[tuple[str, str]]:
    """A cell's pairs of animal and action. In rows whose animals have an apostrophe ("Russell'S Viper"), 411 of them, the
    pairs stand in strings inside the list.
    """
    try:
        pairs = []
        for item in ast.literal_eval(cell):
            pairs += ast.literal_eval(item) if isinstance(item, str) else [item]
        if any(not isinstance(word, str) for pair in pairs for word in pair) or any(len(pair) != 2 for pair in pairs):
            raise ValueError("no pairs")
        return pairs
    except (ValueError, SyntaxError, TypeError):
        raise UserError(
            f"{file} row {number}: list_animal_action should be like [('Horse', 'Eating')], got {str(cell)[:80]!r}"
        ) from None
