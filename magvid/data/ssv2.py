"""Something-Something V2: people who do something with something, in a few seconds, each video with its instruction (Goyal et
al., ICCV 2017, https://arxiv.org/abs/1706.04261).

    ssv2/
        20bn-something-something-v2/1.webm ...    220,847 videos (the parts 20bn-something-something-v2-00, -01, ... of one tar.gz)
        labels/train.json, validation.json        (20bn-something-something-download-package-labels.zip)
                    [{"id": "78687", "label": "holding potato next to vicks vaporub bottle", "template": "Holding [something] next
                    to [something]", "placeholders": ["potato", "vicks vaporub bottle"]}, ...]
        labels/labels.json                        the 174 classes, {"Approaching something with your camera": "0", ...}
        labels/test.json                          ids alone; not read

Read in github.com/open-mmlab/mmaction2 at 4d6c934, tools/data/sthv2/README.md (how it is unpacked) and tools/data/parse_file_list.py,
parse_sthv2_splits (the entries; a class is a template without its brackets); github.com/kvablack/dlimp at ad72ce3,
scripts/somethingsomething/raw_to_tfrecord.py (folder of the videos); github.com/seervideodiffusion/SeerVideoLDM at d19af00,
dataset/sthv2.py (the text is "label"). 20BN had named the annotations something-something-v2-train.json, as mmaction2 still does; both
names are looked for. The archive itself was not at hand, nor Qualcomm's instructions for it: what stands in the zip of the labels is
known second-hand, from github.com/hibana2077/VC-SA, docs/new_dataset.md at 75cfdff and download/ssv2.bash at 7602116.
"""

import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from magvid.data.folder import InstructionFolder, Told
from magvid.data.source import instruction
from magvid.types import UserError

SPLITS = ("train", "validation")
VIDEOS = "20bn-something-something-v2"
HOME = "https://www.qualcomm.com/developer/software/something-something-v-2-dataset"


class SSV2(InstructionFolder):
    """Source of uint8 clips (frames height width 3) of Something-Something V2 in the folder `path`.

    split: the archive's "train" or "validation", None for both ("test" has no texts); only its videos are indexed. labels: the folder
    of the json files, by default `labels` in `path`. spread: see `VideoFolder`; as here, Seer shows the whole video, but blends
    neighbouring frames where it has more than a clip (dataset/data_utils.py, cast_num_frames). All else: see `VideoFolder`.

    A record is that of an `InstructionFolder`; label: the number of the template, whose texts are `classes`; text: "moving cup up";
    file: "78687.webm". A video without a text is left out. UserError where the archive is not there or is laid out otherwise.
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
        spread: bool = True,
    ):
        if split not in (None, *SPLITS):
            raise ValueError(f'split must be "train", "validation" or None, got {split!r}: the test videos have no texts')
        path = pathlib.Path(path).expanduser()
        told, classes = read_labels(path / "labels" if labels is None else labels, [split] if split else SPLITS)
        if not (path / VIDEOS).is_dir():
            raise UserError(f"there is no folder {path / VIDEOS}: cat {VIDEOS}-?? | tar -xz there puts the videos into it")
        reading = dict(fps=fps, stride=stride, crop=crop, windows=windows, keep_aspect=keep_aspect, spread=spread)
        super().__init__(path / VIDEOS, frames, height, width, told, classes, index=index, **reading)


def read_labels(folder: str | os.PathLike, splits: Iterable[str] = SPLITS) -> tuple[dict[str, Told], tuple[str, ...]]:
    """What the json files say of the videos of these splits, by their names, and the classes. UserError naming the file that is not
    there or is something else.
    """
    folder = pathlib.Path(folder).expanduser()
    file, numbers = _load(folder, "labels")
    try:
        numbers = {template: int(number) for template, number in numbers.items()}
        if not numbers or sorted(numbers.values()) != list(range(len(numbers))):
            raise ValueError
    except (AttributeError, TypeError, ValueError):
        raise UserError(f'{file} should have the numbers 0, 1, ... of all templates, {{"Closing something": "0", ...}}') from None
    told = {}
    for split in splits:
        file, rows = _load(folder, split)
        if not isinstance(rows, list) or not rows:
            raise UserError(f'{file} should be a list of {{"id": ..., "label": ..., "template": ...}}, one for each video')
        told |= dict(_told(file, k, row, numbers) for k, row in enumerate(rows))
    return told, tuple(sorted(numbers, key=numbers.__getitem__))


def _told(file: pathlib.Path, k: int, row: Any, numbers: Mapping[str, int]) -> tuple[str, Told]:
    try:
        name, template, text = f"{row['id']}.webm", row["template"].replace("[", "").replace("]", ""), row.get("label") or ""
        text = instruction(text)
    except (KeyError, TypeError, AttributeError):
        raise UserError(f'{file}: entry {k} should have "id", "label" and "template", got {json.dumps(row)[:120]}') from None
    if template not in numbers:
        raise UserError(f'{file}: the template "{template}" of video {row["id"]} is not one of the {len(numbers)} in labels.json')
    return name, Told(name, numbers[template], text)


def _load(folder: pathlib.Path, name: str) -> tuple[pathlib.Path, Any]:
    """train.json, or something-something-v2-train.json."""
    files = [folder / f"{name}.json", folder / f"something-something-v2-{name}.json"]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise UserError(
            f"there is no file {files[0]}: unpack the labels of Something-Something V2 ({HOME}) there, or say where they are (`labels`)"
        )
    try:
        return file, json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{file} cannot be read as json ({error}): download it again") from error
