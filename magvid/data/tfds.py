"""Images and videos of a prepared TFDS data set (https://www.tensorflow.org/datasets), read without TensorFlow.

    pip install tensorflow    # only to prepare; ucf101 also needs ffmpeg and unrar, imagenet2012 its two tar files
    python -c "import tensorflow_datasets as tfds; tfds.builder('bair_robot_pushing_small', data_dir='DIR',
               file_format='array_record').download_and_prepare()"

(`tfds build` does the same where apache-beam is installed.) TFDS reads the description of the data set and its splits.
The records are decoded here, because TFDS's Video feature needs TensorFlow, and because of a video only the frames of a
clip are decoded.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from magvid import video
from magvid.data.images import decode_image
from magvid.data.records import open_records
from magvid.data.source import Cut, Source
from magvid.types import UserError


@dataclasses.dataclass(frozen=True)
class Picture:
    """A feature with pixels. frames: None for an image, of a video their number, -1 where it varies."""

    dtype: str
    frames: int | None = None


class TFDS(Source):
    """Source of uint8 clips (frames height width 3) from one split of a prepared data set.

    name: as in `tfds.load`: "imagenet2012", "ucf101/ucf101_1_256", "imagenet2012:5.1.0" (default: the newest version
    there is). split: TFDS's, such as "train", "train[:90%]", "train+validation". frames, height, width, stride: size of
    a clip; of images frames=1. The picture is resized (anti-aliased) so that it covers height x width, then cropped.
    crop, windows: see `Source`. data_dir: where the data set was prepared; "" is $TFDS_DATA_DIR, or else
    ~/tensorflow_datasets. picture: the feature to read, where there are several (BAIR: "image_aux1"). label: the class
    feature, where there are several; "" reads none, which is one class, named like the data set.

    A record is {"video": uint8 (t h w 3), "label": int32 in [0, len(classes))}. Grey pictures are repeated to three
    channels. A record that is damaged, or shorter than a clip, is replaced by the next one, with a warning. Raises
    UserError where the data set is not there (with the command that prepares it) or cannot be read so.
    """

    fps = None  # the files do not say

    def __init__(
        self,
        name: str,
        split: str,
        frames: int,
        height: int,
        width: int,
        stride: int = 1,
        crop: str = "random",
        windows: int = 0,
        data_dir: str | os.PathLike = "",
        picture: str | None = None,
        label: str | None = None,
    ):
        super().__init__(frames, height, width, stride, crop, windows)
        self.name, self.split = name, split
        self.path = find_dataset(name, data_dir)
        files, file_format = _files(self.path, split)
        pictures, classes = _features(self.path)
        self._key = _choose(pictures, picture, "picture", self.path)
        self._picture = pictures[self._key]
        self._label = None if label == "" or not classes else _choose(classes, label, "label", self.path)
        self.classes = _class_names(self.path, self._label, classes) if self._label else (self.world_name,)
        self._check_picture()
        self._records = open_records(files, file_format)
        shards = [(pathlib.Path(file.filename).name, file.skip, file.take) for file in files]
        cut = [frames, height, width, stride, crop, windows, self._key, self._label]
        content = json.dumps([self.path.parts[-2:], split, len(self._records), shards, cut])
        self.fingerprint = hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def world_name(self) -> str:
        """Stands beside numbers that were measured on this source."""
        return self.name.split("/")[0].split(":")[0]

    @property
    def records(self) -> int:
        return len(self._records)

    def cut(self, i: int, cut: Cut) -> dict[str, Any]:
        where = f"record {i} of {self.name} {self.split}"
        features = _parse(self._records[i], where)
        images = features[self._key].bytes_list.value
        if len(images) < self.span:
            raise UserError(f"{where} is too short: {len(images)} frames, a clip needs {self.span}")
        first = cut.first(len(images) - self.span + 1)
        size = (self.height, self.width)
        shown = [decode_image(data, size, where) for data in images[first : first + self.span : self.stride]]
        clip = video.resize_crop(np.stack(shown), *size, cut.y, cut.x)
        return {"video": clip, "label": np.int32(self._class(features, where))}

    def _class(self, features: Mapping[str, Any], where: str) -> int:
        if not self._label:
            return 0
        label = next(iter(features[self._label].int64_list.value), -1)
        if not 0 <= label < len(self.classes):
            raise ValueError(f'{where} has label {label}, there are {len(self.classes)} classes: read it with label=""')
        return label

    def _check_picture(self) -> None:
        what, have = f'"{self._key}" of {self.name}', self._picture.frames
        if self._picture.dtype not in ("uint8", "uint16"):
            raise UserError(f"{what} is {self._picture.dtype}; pictures of 8 or 16 bits are read")
        if have is None and self.frames > 1:
            raise UserError(f"{what} is an image, which has one frame, not {self.frames}: give frames=1")
        if have is not None and 0 <= have < self.span:
            raise UserError(f"{what} has {have} frames, a clip needs {self.span}: lower frames or stride")


# What stands in the folder of a data set ----------------------------------------------------------------------------


def find_dataset(name: str, data_dir: str | os.PathLike = "") -> pathlib.Path:
    """The folder of the newest prepared version of `name`; UserError with the command that prepares it."""
    tfds = _import_tfds()
    base = os.fspath(data_dir) or tfds.core.constants.get_default_data_dir()
    if "://" in base:
        raise UserError(f"data_dir={base} is not a folder of this machine: mount it, or copy the data set to a disk")
    plain, _, version = name.partition(":")
    home = pathlib.Path(base).expanduser() / plain
    found = tfds.core.utils.version.list_all_versions(home) if home.is_dir() else []
    if version:
        found = [v for v in found if v.match(version)]
    if found and (home / str(found[-1]) / tfds.core.constants.FEATURES_FILENAME).is_file():
        return home / str(found[-1])
    inside = sorted(p.name for p in home.iterdir() if p.is_dir() and p.name[0] != ".") if home.is_dir() else []
    hint = f", only the configs or versions {', '.join(inside)} of it" if inside else ""
    raise UserError(
        f"there is no prepared data set {name} in {base}{hint}. Give the folder where it is as data_dir or "
        f"TFDS_DATA_DIR, or prepare it (with pip install tensorflow): python -c \"import tensorflow_datasets as tfds; "
        f"tfds.builder('{name}', data_dir='{base}', file_format='array_record').download_and_prepare()\""
    )


def _files(path: pathlib.Path, split: str) -> tuple[list[Any], str]:
    """TFDS's file instructions of a split, and the format of the files."""
    from tensorflow_datasets.core import dataset_info

    try:
        proto = dataset_info.read_proto_from_builder_dir(path)
        formats = [proto.file_format or "tfrecord", *proto.alternative_file_formats]  # old ones do not say
        file_format = "array_record" if "array_record" in formats else formats[0]
        splits = dataset_info.get_split_dict_from_proto(proto, path, file_format)
        files = splits[split].file_instructions
    except (ValueError, KeyError, OSError) as error:  # a wrong split; a damaged description
        raise UserError(f"cannot read split {split!r} of {path}: {' '.join(str(error).split())}") from error
    files = [file for file in files if file.take]
    if not files:
        raise UserError(f"split {split!r} of {path} has no records; it has {', '.join(splits)}")
    return files, file_format


def _features(path: pathlib.Path) -> tuple[dict[str, Picture], dict[str, int]]:
    """features.json -> ({name: picture}, {name of a class feature: number of classes})."""
    try:
        content = json.loads((path / "features.json").read_text("utf-8"))
        found = dict(_walk(content))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path / 'features.json'} cannot be read ({error!r}): prepare the data set again") from error
    pictures = {key: value for key, value in found.items() if isinstance(value, Picture)}
    return pictures, {key: value for key, value in found.items() if isinstance(value, int)}


def _walk(spec: Mapping[str, Any], name: str = "", frames: int | None = None) -> Iterator[tuple[str, Picture | int]]:
    """Pictures and class features below a feature; `frames`: of the sequence around it."""
    if "featuresDict" in spec:
        for key, child in spec["featuresDict"]["features"].items():
            yield from _walk(child, f"{name}/{key}" if name else key, frames)
    elif "sequence" in spec and frames is None:  # a sequence of sequences is stored otherwise
        yield from _walk(spec["sequence"]["feature"], name, int(spec["sequence"].get("length", -1)))
    elif "image" in spec:
        yield name, Picture(spec["image"].get("dtype", "uint8"), frames)
    elif "video" in spec and frames is None:
        length = int(spec["video"]["shape"]["dimensions"][0])
        yield name, Picture(spec["video"].get("dtype", "uint8"), length)
    elif "classLabel" in spec and frames is None:
        yield name, int(spec["classLabel"]["numClasses"])


def _choose(found: Mapping[str, Any], wanted: str | None, argument: str, path: pathlib.Path) -> str:
    if wanted is None and len(found) == 1:
        return next(iter(found))
    if wanted is None or wanted not in found:
        what = f"no {argument} {wanted!r}" if wanted else f"{len(found) or 'no'} features that may be the {argument}"
        remedy = f": give {argument}=, one of {', '.join(found)}" if found else ""
        raise UserError(f"{path} has {what}{remedy}")
    return wanted


def _class_names(path: pathlib.Path, label: str, classes: Mapping[str, int]) -> tuple[str, ...]:
    """Names from the file that TFDS writes beside the data; numbers where there is none."""
    file = path / f"{label.replace('/', '-')}.labels.txt"
    names = file.read_text("utf-8").split("\n") if file.is_file() else []
    names = [name.strip() for name in names if name.strip()]
    return tuple(names) if len(names) == classes[label] else tuple(map(str, range(classes[label])))


def _parse(record: bytes, where: str) -> Mapping[str, Any]:
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2

    try:
        return tf_example_pb2.Example.FromString(record).features.feature
    except DecodeError as error:
        raise UserError(f"{where} is damaged: {error}") from error


def _import_tfds() -> Any:
    """TFDS, or a UserError that says how to install it."""
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise UserError(
            f'TFDS data sets need tensorflow-datasets, which cannot be imported ({error}): pip install -e ".[tfds]"'
        ) from error
    return tensorflow_datasets
