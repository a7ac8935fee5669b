"""UCF-101: 13,320 short videos of 101 actions from YouTube (Soomro et al., 2012, https://arxiv.org/abs/1212.0402). The name of the action
is the instruction.

    ucf101/
        UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi ...    (UCF101.rar)
        ucfTrainTestlist/classInd.txt                              "1 ApplyEyeMakeup" (UCF101TrainTestSplits-RecognitionTask.zip)
        ucfTrainTestlist/trainlist01.txt                           "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1"; also 02 and 03
        ucfTrainTestlist/testlist01.txt                            "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi"

Read in github.com/open-mmlab/mmaction2 at 4d6c934, tools/data/ucf101 (README.md, download_videos.sh and download_annotations.sh: the
archives and where they come from; label_map.txt: all names) and tools/data/parse_file_list.py, parse_ucf101_splits; the lines of the
lists also in github.com/craston/MARS, issue 7, and the folder ucfTrainTestlist in github.com/bo-yang/dtf_fisher at c46caca. The
archives themselves were not at hand.
"""

import os
import pathlib
import re
from collections.abc import Iterable

from magvid.data.folder import InstructionFolder, Told
from magvid.types import UserError

SPLITS = ("train", "test")


class UCF101(InstructionFolder):
    """Source of uint8 clips (frames height width 3) of UCF-101 in the folder `path`.

    split: "train" or "test" of the archive's `fold` (1, 2 or 3), None for both; only its videos are indexed. All else: see
    `VideoFolder`.

    A record is that of an `InstructionFolder`; label: the number in classInd.txt less one; text: "apply eye makeup"; file:
    "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi", whose masks would be in `masks`/ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01. UserError where
    the archive is not there or is laid out otherwise.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        frames: int,
        height: int,
        width: int,
        *,
        split: str | None = None,
        fold: int = 1,
        fps: float | None = None,
        stride: int = 1,
        crop: str = "random",
        windows: int = 0,
        index: str | os.PathLike | None = None,
        keep_aspect: bool = True,
        spread: bool = True,
        masks: str | os.PathLike | None = None,
    ):
        if split not in (None, *SPLITS):
            raise ValueError(f'split must be "train", "test" or None, got {split!r}')
        if fold not in (1, 2, 3):
            raise ValueError(f"fold must be 1, 2 or 3, got {fold!r}")
        path = pathlib.Path(path).expanduser()
        told, classes = read_lists(path / "ucfTrainTestlist", fold, [split] if split else SPLITS)
        if not (path / "UCF-101").is_dir():
            raise UserError(f"there is no folder {path / 'UCF-101'}: unpack UCF101.rar there")
        reading = dict(fps=fps, stride=stride, crop=crop, windows=windows, keep_aspect=keep_aspect, spread=spread, masks=masks)
        super().__init__(path / "UCF-101", frames, height, width, told, classes, index=index, **reading)


def read_lists(folder: pathlib.Path, fold: int, splits: Iterable[str]) -> tuple[dict[str, Told], tuple[str, ...]]:
    """What the lists say of the videos of these splits, by their names, and the classes. UserError naming the file that is not there
    or is something else.
    """
    classes, told = [], {}
    for line, where in _lines(folder / "classInd.txt"):
        number, _, name = line.partition(" ")
        if number != str(len(classes) + 1) or not name.isalnum():
            raise UserError(f'{where} should be like "{len(classes) + 1} ApplyEyeMakeup", got "{line[:80]}"')
        classes.append(name)
    for split in splits:
        for line, where in _lines(folder / f"{split}list{fold:02d}.txt"):
            name = line.split()[0]
            action = name.split("/")[0]
            if "/" not in name or action not in classes:
                raise UserError(f'{where} should be like "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi", got "{line[:80]}"')
            told[name] = Told(name, classes.index(action), words(action))
    return told, tuple(classes)


def words(name: str) -> str:
    """ApplyEyeMakeup -> apply eye makeup"""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).lower()


def _lines(file: pathlib.Path) -> list[tuple[str, str]]:
    """Those that are not empty, each with where it stands."""
    if not file.is_file():
        raise UserError(f"there is no file {file}: unpack UCF101TrainTestSplits-RecognitionTask.zip beside the folder UCF-101")
    lines = file.read_text("utf-8", "replace").splitlines()
    found = [(line.strip(), f"{file} line {k}") for k, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise UserError(f"{file} is empty: unpack it again")
    return found
