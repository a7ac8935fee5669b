"""MSR-VTT: 10,000 clips of YouTube in 20 categories, each with 20 captions (Xu et al., "MSR-VTT: A Large Video Description Dataset for
Bridging Video and Language", CVPR 2016).

    msrvtt/
        TrainValVideo/video0.mp4 ... video7009.mp4       (train_val_videos.zip)
        TestVideo/video7010.mp4 ... video9999.mp4        (test_videos.zip)
        train_val_videodatainfo.json                     (train_val_annotation.zip)
        test_videodatainfo.json                          (test_videodatainfo.json.zip)
            {"videos": [{"video_id": "video0", "category": 9, "split": "train", "url": ..., "start time": ..., "end time": ...}, ...],
             "sentences": [{"video_id": "video0", "sen_id": 0, "caption": "a car is shown"}, ...], "info": ...}
    msrvtt/                                              or, as it is passed on for retrieval,
        videos/all/video0.mp4 ... video9999.mp4          (MSRVTT.zip)
        MSRVTT_data.json                                 the same for all clips (msrvtt_data.zip)
        MSRVTT_JSFUSION_test.csv                         "key,vid_key,video_id,sentence": 1,000 test clips with one caption each, "1k-A"

Read in github.com/VisionLearningGroup/caption-guided-saliency, README.md at 49f9a44 (the first layout); github.com/open-mmlab/mmaction2,
tools/data/video_retrieval/prepare_msrvtt.sh at 274c2ad and prepare_msrvtt.py at 1fc5193 (the second one; videos moved to videos/);
github.com/m-bain/frozen-in-time at 4ca18e3, data_loader/MSRVTT_dataset.py (videos/all); github.com/ArrowLuo/CLIP4Clip at 59f8deb,
dataloaders/dataloader_msrvtt_retrieval.py (the json files and the csv); github.com/www-2025/EAT at 532baeb,
data/MSRVTT/MSRVTT_JSFUSION_test.csv (a copy of the list, whose last column is "sentences"). The archives were not at hand: their readme
and the order of the categories are known from copies only.

Which split a clip is of is said by its number, as that readme has it: there are json files in use that call every clip "train"
(github.com/xiadingZ/video-caption.pytorch, issue 29).
"""

import csv
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from magvid.data.folder import InstructionFolder, Told
from magvid.data.source import instruction
from magvid.types import UserError

SPLITS = {"train": range(6513), "validation": range(6513, 7010), "test": range(7010, 10000)}
TEST_1KA = "MSRVTT_JSFUSION_test.csv"
FOLDERS = ("TrainValVideo", "TestVideo", "videos/all", "videos", ".")
CATEGORIES = (
    "music", "people", "gaming", "sports", "news", "education", "tv shows", "movie", "animation", "vehicles", "howto", "travel", "science",
    "animals", "kids", "documentary", "food", "cooking", "beauty", "advertisement",
)  # fmt: skip


class MSRVTT(InstructionFolder):
    """Source of uint8 clips (frames height width 3) of MSR-VTT in the folder `path`.

    split: "train", "validation", "test", or "test_1ka", 1,000 of the test clips with the captions of MSRVTT_JSFUSION_test.csv; None for
    all; only its videos are indexed. labels: the folder of the json and csv files, by default `path`. All else: see `VideoFolder`.

    A record is that of an `InstructionFolder`; label: the category, whose names are `classes`; text: one of the 20 captions, the first one in
    `source[i]`; file: "TestVideo/video7020.mp4", whose masks would be in `masks`/TestVideo/video7020. A video without a caption is left
    out. UserError where the archive is not there or is laid out otherwise.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        frames: int,
        height: int,
        width: int,
        *,
        split: str | None = None,
        labels: str | os.PathLike | None = None,
        fps: float | None = None,
        stride: int = 1,
        crop: str = "random",
        windows: int = 0,
        index: str | os.PathLike | None = None,
        keep_aspect: bool = True,
        spread: bool = False,
        masks: str | os.PathLike | None = None,
    ):
        if split not in (None, *SPLITS, "test_1ka"):
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, test_1ka or None, got {split!r}")
        path = pathlib.Path(path).expanduser()
        videos = read_labels(path if labels is None else labels, split)
        files = _files(path)
        if not files:
            raise UserError(f"there are no videos in {path}/{{{','.join(FOLDERS[:-1])}}}: unpack train_val_videos.zip and test_videos.zip there")
        clips = [Told(files.get(video, f"{video}.mp4"), category, captions) for video, (category, captions) in videos.items()]
        told = {clip.file: clip for clip in clips}
        reading = dict(fps=fps, stride=stride, crop=crop, windows=windows, keep_aspect=keep_aspect, spread=spread, masks=masks)
        super().__init__(path, frames, height, width, told, CATEGORIES, index=index, **reading)


def read_labels(folder: str | os.PathLike, split: str | None = None) -> dict[str, tuple[int, tuple[str, ...]]]:
    """The category and captions of each video of this split, {"video0": (9, ("a car is shown", ...))}. UserError naming the file that is
    not there or is something else.
    """
    folder = pathlib.Path(folder).expanduser()
    parts = {"train": ("train_val",), "validation": ("train_val",), None: ("train_val", "test")}.get(split, ("test",))
    files = [folder / "MSRVTT_data.json"]
    if not files[0].is_file():
        files = [folder / f"{part}_videodatainfo.json" for part in parts]
    categories, captions = {}, {}
    for file in files:
        _read(file, categories, captions)
    if split == "test_1ka":
        captions = read_1ka(folder / TEST_1KA)
        if lost := sorted(set(captions) - set(categories)):
            raise UserError(f"{folder / TEST_1KA} names {len(lost)} videos that {files[0]} does not, such as {lost[0]}")
        wanted = list(captions)
    else:
        wanted = [video for video in categories if split is None or int(video.removeprefix("video")) in SPLITS[split]]
        if not wanted:
            raise UserError(f'{files[0]} has no video of split "{split}": these are {SPLITS[split].start} to {SPLITS[split].stop - 1}')
    return {video: (categories[video], tuple(filter(None, map(instruction, captions.get(video, ()))))) for video in wanted}


def read_1ka(file: pathlib.Path) -> dict[str, list[str]]:
    """The captions of the test list 1k-A. UserError where it is not there or is something else."""
    if not file.is_file():
        raise UserError(f"there is no file {file}: it is in msrvtt_data.zip (https://github.com/ArrowLuo/CLIP4Clip)")
    captions: dict[str, list[str]] = {}
    with open(file, encoding="utf-8", errors="replace", newline="") as stream:
        reader = csv.DictReader(stream)
        columns = reader.fieldnames or []
        text = next((name for name in ("sentence", "sentences") if name in columns), None)
        if text is None or "video_id" not in columns:
            raise UserError(f"{file} should begin with key,vid_key,video_id,sentence, got {','.join(columns)[:80]!r}")
        for row in reader:
            captions.setdefault(row["video_id"], []).append(row[text] or "")
    if not captions:
        raise UserError(f"{file} has no rows: unpack it again")
    return captions


def _read(file: pathlib.Path, categories: dict[str, int], captions: dict[str, list[str]]) -> None:
    """Adds what a json file says of its videos."""
    if not file.is_file():
        raise UserError(f"there is no file {file}, nor MSRVTT_data.json: unpack the annotations of MSR-VTT there, or say where they are (`labels`)")
    try:
        content = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{file} cannot be read as json ({error}): download it again") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) and content[key] for key in ("videos", "sentences")):
        raise UserError(f'{file} should have the lists "videos" and "sentences"')
    for row in content["videos"]:
        video, category = _entry(file, "videos", row, "video_id", "category")
        if not re.fullmatch(r"video\d{1,4}", str(video)) or category not in range(len(CATEGORIES)):
            raise UserError(f"{file}: video {video!r} of category {category!r}; expected video0 to video9999, 0 to {len(CATEGORIES) - 1}")
        categories[video] = int(category)
    for row in content["sentences"]:
        video, caption = _entry(file, "sentences", row, "video_id", "caption")
        captions.setdefault(str(video), []).append(str(caption))


def _entry(file: pathlib.Path, of: str, row: Any, *keys: str) -> tuple[Any, ...]:
    if not isinstance(row, Mapping) or any(key not in row for key in keys):
        raise UserError(f'{file}: an entry of "{of}" should have {" and ".join(keys)}, got {json.dumps(row)[:120]}')
    return tuple(row[key] for key in keys)


def _files(path: pathlib.Path) -> dict[str, str]:
    """Where each video lies, {"video0": "TrainValVideo/video0.mp4"}."""
    found: dict[str, str] = {}
    for folder in (folder for folder in FOLDERS if (path / folder).is_dir()):
        names = (file.name for file in os.scandir(path / folder) if re.fullmatch(r"video\d+\.mp4", file.name))
        found = {name.removesuffix(".mp4"): pathlib.PurePosixPath(folder, name).as_posix() for name in names} | found
    return found
