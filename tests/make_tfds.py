"""Tiny TFDS data sets, prepared by TFDS itself without TensorFlow (array_record), and copies in other formats."""

import io
import json
import pathlib
import shutil
import struct

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.core.utils.shard_utils import FileInstruction

from magvid.data.records import TFRecords

BAIR_FRAMES = 30


def noise(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


class Pictures(tfds.core.GeneratorBasedBuilder):
    """Like imagenet2012: images of different sizes, class, file name; the last two are grey and transparent."""

    VERSION = tfds.core.Version("5.1.0")

    def _info(self):
        feature = tfds.features
        label = feature.ClassLabel(names=["cat", "eel", "yak"])
        features = dict(image=feature.Image(), label=label, name=feature.Text())
        return tfds.core.DatasetInfo(builder=self, features=feature.FeaturesDict(features), disable_shuffling=True)

    def _split_generators(self, manager):
        return {"train": self._generate_examples(0, 8), "validation": self._generate_examples(8, 12)}

    def _generate_examples(self, first, end):
        for i in range(first, end):
            yield i, {"image": io.BytesIO(png(self.picture(i))), "label": i % 3, "name": f"{i}.png"}

    @staticmethod
    def picture(i):
        return noise(i, *((10 + i, 14, 3), (12, 10))[i % 12 == 10]) if i != 11 else noise(i, 8, 8, 4)


class Robot(tfds.core.GeneratorBasedBuilder):
    """Like bair_robot_pushing_small: a sequence of frames of two cameras, with actions."""

    VERSION = tfds.core.Version("2.0.0")

    def _info(self):
        feature = tfds.features
        frame = dict(image_main=feature.Image(shape=(6, 8, 3)), image_aux1=feature.Image(shape=(6, 8, 3)))
        frame["action"] = feature.Tensor(shape=(4,), dtype=np.float32)
        return tfds.core.DatasetInfo(
            builder=self, features=feature.Sequence(frame, length=BAIR_FRAMES), disable_shuffling=True
        )

    def _split_generators(self, manager):
        return {"train": self._generate_examples(0, 5), "test": self._generate_examples(5, 7)}

    def _generate_examples(self, first, end):
        for i in range(first, end):
            frames = zip(self.clip(i), self.clip(i, "main"))
            picture = lambda image: io.BytesIO(png(image))
            action = np.full(4, i, np.float32)
            yield i, [dict(image_aux1=picture(a), image_main=picture(m), action=action) for a, m in frames]

    @staticmethod
    def clip(i, camera="aux1"):
        return noise((i, camera == "main"), BAIR_FRAMES, 6, 8, 3)


def rewritten(folder: pathlib.Path, to: pathlib.Path, file_format: str, damage: dict = {}) -> None:
    """A copy of a data set's folder (NAME[/CONFIG]/VERSION) with its records in two files of this format; `damage`
    {(split, i): bytes} replaces records.
    """
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("*record-0*"))
    info = json.loads((folder / "dataset_info.json").read_text())
    writers = {"array_record": write_array_record, "tfrecord": write_tfrecord}
    for split in info["splits"]:
        records = list(records_of(folder, info, split))
        records = [damage.get((split["name"], i), record) for i, record in enumerate(records)]
        shards = np.array_split(np.arange(len(records)), 2)
        split["shardLengths"] = [str(len(shard)) for shard in shards]
        for k, shard in enumerate(shards):
            name = f"{info['name']}-{split['name']}.{file_format}-{k:05}-of-00002"
            writers[file_format](to / name, [records[i] for i in shard])
    (to / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": file_format}))


def records_of(folder, info, split):
    length = int(split["shardLengths"][0])
    path = folder / f"{info['name']}-{split['name']}.{info['fileFormat']}-00000-of-00001"
    source = ArrayRecordDataSource if info["fileFormat"] == "array_record" else TFRecords
    return source([FileInstruction(str(path), 0, -1, length)])


def write_array_record(path, records):
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def write_tfrecord(path, records):
    """Without the checksums, which nothing here reads."""
    path.write_bytes(b"".join(struct.pack("<QI", len(record), 0) + record + bytes(4) for record in records))
