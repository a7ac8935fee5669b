"""DAVIS: short videos with masks of their objects in every frame (Perazzi et al., CVPR 2016; Pont-Tuset et al., 2017,
https://arxiv.org/abs/1704.00675).

    DAVIS/                                       of DAVIS-2017-trainval-480p.zip or DAVIS-2017-trainval-Full-Resolution.zip
        JPEGImages/480p/bear/00000.jpg ...       or Full-Resolution; numbered from 0 without gaps
        Annotations/480p/bear/00000.png ...      palettes: 0 is the background, 1, 2, ... are the objects, 255 is neither
        ImageSets/2017/train.txt, val.txt        "bear": a video in each line; also ImageSets/2016
    DAVIS/                                       of DAVIS-data.zip, the archive of 2016; also 1080p
        Annotations/480p/bear/00000.png ...      the one object white on black
        ImageSets/480p/train.txt, val.txt        "/JPEGImages/480p/bear/00000.jpg /Annotations/480p/bear/00000.png": a frame in each line
    DAVIS/captions.jsonl                         not of the archive: {"file": "bear", "caption": "a bear walks on rocks"} in each line

Read in github.com/davisvideochallenge/davis2017-evaluation at 30b698a, davis2017/davis.py (folders, lists, and that 255 is no object),
github.com/fperazzi/davis-2017 at 88d910e, python/lib/davis/dataset/base.py (likewise; it merges the objects to one),
github.com/tensorflow/datasets at 146b8e1, tensorflow_datasets/video/davis/davis.py (the zips, the numbers of the frames, and that
annotations are index PNGs), github.com/lartpang/OpticalFlowBasedVOS at 5688438, configs/davis16.py (ImageSets/2016 in the zip of 2017),
github.com/insomnia94/OnAVOS at 15316c3, datasets/DAVIS/DAVIS.py (the lists of 2016), and the video car-shadow of 2016 itself, in
github.com/scaelles/OSVOS-TensorFlow at 6ef61d1, DAVIS. The zips were not at hand, nor an annotation of 2017.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from magvid import video
from magvid.data.images import decode_image
from magvid.data.masks import VOID
from magvid.data.source import Cut, Source, no_folder, report_bad
from magvid.data.text import Captions
from magvid.types import UserError

SPLITS = {"train": "train", "validation": "val"}


class Video(NamedTuple):
    """A usable one: its name, texts, number of frames, digest, and where a clip may begin."""

    name: str
    texts: tuple[str, ...]
    count: int
    digest: str
    starts: Sequence[int]


class Davis(Source):
    """Source of uint8 clips (frames height width 3) of the videos of DAVIS in the folder `path`, with the masks of their objects.

    frames, height, width, stride, crop, windows, keep_aspect, spread: as for `VideoFolder`. year: of the lists, 2016 or 2017. split: "train"
    or "validation", None for both. resolution: the folder of frames and annotations, such as "Full-Resolution". objects: the numbers of
    those that are the subject, such as (1,); None: all of them. A video whose first frame has none of these is left out, and so is one that
    is not annotated in every frame; in a clip the subject may be out of sight.

    A record is {"video": uint8 (t h w 3), "masks": bool (t h w), cut as the video is, "label": int32, "text": str, "file": str, "digest":
    str}. label: 0, there are no classes. text: the video's caption in captions.jsonl, of several one drawn as captions are; without one its
    name, "dog agility". file: "dog-agility". digest: of the names and sizes of its frames and annotations. Attributes: `classes`, `files`
    (usable videos of this split), `bad` (name -> reason). A video that cannot be read later is replaced by the next one that can. UserError
    where the archive is not there, is laid out otherwise, or has no usable video.
    """

    fps = None  # the archive does not say
    classes = ("davis",)

    def __init__(
        self,
        path: str | os.PathLike,
        frames: int,
        height: int,
        width: int,
        *,
        year: int = 2017,
        split: str | None = None,
        resolution: str = "480p",
        objects: Collection[int] | None = None,
        stride: int = 1,
        crop: str = "random",
        windows: int = 0,
        keep_aspect: bool = True,
        spread: bool = False,
    ):
        super().__init__(frames, height, width, stride, crop, windows, keep_aspect=keep_aspect, spread=spread)
        if year not in (2016, 2017):
            raise ValueError(f"year must be 2016 or 2017, got {year!r}")
        if split not in (None, *SPLITS):
            raise ValueError(f'split must be "train", "validation" or None, got {split!r}: the test videos have no annotations')
        if objects is not None and (not objects or not all(0 < k < VOID for k in objects)):
            raise ValueError(f"objects={objects!r}: numbers from 1 to {VOID - 1}, or None for all objects")
        self.path, self.objects = pathlib.Path(path).expanduser(), None if objects is None else sorted(objects)
        self.images, self.annotations = (self.path / kind / resolution for kind in ("JPEGImages", "Annotations"))
        for folder in (self.images, self.annotations):
            if not folder.is_dir():
                raise UserError(no_folder(folder, "DAVIS (DAVIS-2017-trainval-480p.zip)"))
        captions = self.path / "captions.jsonl"
        texts = Captions(str(captions)).texts if captions.is_file() else {}
        names = sorted({name for part in ([split] if split else SPLITS) for name in read_list(self.path / "ImageSets", year, SPLITS[part])})
        said = lambda name: tuple(filter(str.strip, texts.get(name, ()))) or (name.replace("-", " "),)
        found = {name: self._opened(name, said(name)) for name in names}
        self.bad = {name: reason for name, reason in found.items() if isinstance(reason, str)}
        report_bad(self.path, self.bad, len(found), "videos", "Unpack the archive again, or lower frames or stride where they are too short.")
        self.files = [name for name in names if name not in self.bad]
        self.records, self._videos = len(self.files), [found[name] for name in self.files]

    @property
    def fingerprint(self) -> str:
        """Changes with the names and sizes of frames and annotations, the texts, the objects and the way clips are cut."""
        cut = [self.frames, self.height, self.width, self.stride, self.crop, self.windows, self.keep_aspect, self.spread, self.objects]
        content = [cut, [(v.name, v.texts, v.digest) for v in self._videos]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def cut(self, i: int, cut: Cut) -> dict[str, Any]:
        found = self._videos[i]
        order = self.spread_out(np.arange(found.count))
        first = found.starts[cut.first(len(found.starts))]
        clip, masks = [], []
        for k in order[first : first + self.span : self.stride]:
            image = decode_image(self.images / found.name / f"{k:05d}.jpg", (self.height, self.width))
            file = self.annotations / found.name / f"{k:05d}.png"
            clip.append(self.fit(image[None], cut)[0])
            masks.append(self.fit_mask(self._subject(file), image.shape[:2], cut, file))
        text = found.texts[int(cut.caption * len(found.texts))]
        told = {"label": np.int32(0), "text": text, "file": found.name, "digest": found.digest}
        return {"video": np.stack(clip), "masks": np.stack(masks), **told}

    def _opened(self, name: str, texts: tuple[str, ...]) -> Video | str:
        """A video, or why it is left out."""
        images, annotations = (_sizes(folder / name) for folder in (self.images, self.annotations))
        if not images:
            return f"has no frames in {self.images}"
        missing = [k for k in range(len(images)) if not (images.get(f"{k:05d}.jpg") and annotations.get(f"{k:05d}.png"))]
        if missing:
            return f"{len(missing)} of its frames or their annotations are missing or empty, such as {missing[0]:05d}"
        try:
            if not self._subject(self.annotations / name / "00000.png").any():
                return "has no object in its first frame" if self.objects is None else f"has no object {self.objects} in its first frame"
        except UserError as error:
            return str(error)
        digest = hashlib.sha256(json.dumps([sorted(images.items()), sorted(annotations.items())]).encode()).hexdigest()
        starts = self.starts(name, digest, self.spread_out(np.arange(len(images))), self.stride)
        return starts if isinstance(starts, str) else Video(name, texts, len(images), digest, starts)

    def _subject(self, file: pathlib.Path) -> Bool[np.ndarray, "h w"]:
        """Where an annotation has one of the objects."""
        numbers = read_annotation(file)
        return numbers > 0 if self.objects is None else np.isin(numbers, self.objects)


def read_annotation(file: pathlib.Path) -> np.ndarray:
    """The number of the object at each pixel (h w), 0 for none; white on black is object 1. UserError where it cannot be read."""
    Image = video.import_pillow()
    try:
        with Image.open(file) as image:
            if image.mode != "P":
                return (np.asarray(image.convert("L")) > 127).astype(np.uint8)
            numbers = np.array(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises whatever comes up in a damaged file
        raise UserError(f"{file} cannot be read as an annotation: {error}") from error
    numbers[numbers == VOID] = 0
    return numbers


def read_list(folder: pathlib.Path, year: int, part: str) -> list[str]:
    """The videos in ImageSets/2017/train.txt; for 2016 also in ImageSets/480p/train.txt. UserError where there is no such list."""
    files = [folder / kind / f"{part}.txt" for kind in ([str(year)] if year == 2017 else [str(year), "480p"])]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise UserError(f"there is no file {files[0]}: `path` is the folder DAVIS, which has ImageSets")
    first = [line.split()[0] for line in file.read_text("utf-8", "replace").splitlines() if line.strip()]
    names = list(dict.fromkeys(word.split("/")[-2] if "/" in word else word for word in first))
    if not names:
        raise UserError(f"{file} is empty: unpack it again")
    return names


def _sizes(folder: pathlib.Path) -> dict[str, int]:
    """Of the pictures in a folder, by their names."""
    files = os.scandir(folder) if folder.is_dir() else ()
    return {file.name: file.stat().st_size for file in files if file.name.endswith((".jpg", ".png"))}
