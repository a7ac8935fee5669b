"""What a cache must be made of to serve a config: the same words when it is written and when it is read."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from magvid.build import build
from magvid.data.cache import Cache, CacheRecord, plain
from magvid.data.latents import LatentCache, LatentRecord
from magvid.data.stream import Record, Transform, drawn, transformed
from magvid.data.tokens import TokenCache, TokenRecord
from magvid.data.views import check_views, count_views, take_view
from magvid.sharding import numeric
from magvid.state import Objective
from magvid.types import UserError

# What an objective keeps of a clip (its attribute `keeps`), and what reads that.
CACHES: dict[type[CacheRecord], type[Cache]] = {TokenRecord: TokenCache, LatentRecord: LatentCache}


def describe(
    config: Mapping[str, Any], objective: Objective, sources: Mapping[str, Mapping[str, str]], split: str, source: Any, features: bool = False
) -> CacheRecord:
    """The record of what can be kept of `config.data.<split>`, whose `source` is given and whose first clip is read.

    `config` without references; `sources` = {frozen group: {"run", "weights", "hash"}}; `features`: also what frozen towers say. UserError
    where nothing can be kept: tokens and latents change while what makes them is trained, and without an end of views there are no rows to
    number.
    """
    kind = kind_of(objective)
    if kind.encoder not in sources:
        raise UserError(
            f"{kind.what} can be kept where the {kind.encoder} is frozen, and this config has none or trains it: train it "
            f'alone first, and give objective.{kind.encoder} = dict(run="FOLDER")'
        )
    if not len(source):
        raise UserError(f"the source of data.{split}, {type(source).__name__}, has no records")
    if split == "train":
        check_views(source)
    views, first = count_views(source), take_view(source, 0, 0)
    clip, limit = first["video"].shape[:3], config["data"][split].get("limit") if split == "eval" else None
    data = dict(
        source=config["data"][split]["source"],
        fingerprint=getattr(source, "fingerprint", None),
        first=hashlib.sha256(np.ascontiguousarray(first["video"]).tobytes()).hexdigest()[:12],
        clips=len(source) if limit is None else min(limit, len(source)),
        views=views,
    )
    transforms = build(tuple(config["data"][split].get("transforms", ())))
    _check_transforms(transforms, first, split)
    encoder = {**sources[kind.encoder], "spec": config["objective"][kind.encoder]}
    record = kind(**{kind.encoder: encoder}, data=data, clip=clip, **objective.kept(first))
    if features and kind is not LatentRecord:
        raise UserError(f"features are kept beside latents, and this config keeps {kind.what}: leave out --features")
    if features:
        record = dataclasses.replace(record, features=_features(config["objective"], objective, sources, example(first, transforms)))
    return record


def example(first: Record, transforms: Sequence[Transform]) -> dict[str, np.ndarray]:
    """A batch of one, of the record after the data's transforms."""
    return {name: x[None] for name, x in numeric({name: np.asarray(x) for name, x in transformed(first, transforms).items()}).items()}


def _features(spec: Mapping[str, Any], objective: Objective, sources: Mapping[str, Mapping[str, str]], batch: dict) -> dict[str, dict]:
    """{name: what `LatentRecord.features` says of it}; UserError where the clip lacks what they are made of."""
    try:
        _, found = jax.eval_shape(lambda key, batch: objective.init_features(key, batch, sources), jax.random.key(0), batch)
    except ValueError as error:
        raise UserError(f"what frozen towers say of clips cannot be kept: {error}") from error
    features = {}
    for i, shapes in found.items():
        conditioner, own = objective.conditioners[i], spec["conditioners"][i]
        hashes = {tower: sources[tower]["hash"] for tower in conditioner.towers}
        made_by = {name: own.get(name, getattr(conditioner, name)) for name in (*conditioner.towers, *conditioner.made_by)}
        inputs = [name for name in conditioner.inputs if name in batch]
        features |= {name: dict(shape=x.shape[1:], inputs=inputs, hash=hashes, spec=made_by) for name, x in shapes.items()}
    return plain(features)


def _check_transforms(transforms: Sequence[Transform], first: Record, split: str) -> None:
    """UserError where one of them changes the video, which is not there any more when a cache is read."""
    for seed in range(8):  # a mirroring may leave a clip as it is
        record, rng = first | {"index": np.int64(0)}, np.random.default_rng(seed)  # as the stream gives it to them
        for transform in transforms:
            record = transform(record, rng)
            if not np.array_equal(record["video"], first["video"]):
                raise UserError(
                    f"{type(transform).__name__} in data.{split}.transforms changes the video, and what is kept is made before "
                    "it: move it into the `transforms` of a magvid.data.views:Views around the source"
                )


def steady(record: LatentRecord, transforms: Sequence[Transform], source: Any) -> tuple[LatentRecord, dict[str, str]]:
    """(`record` with the features alone that are the same in every epoch, {another one: the entry that transforms draw anew}), as a few clips show."""
    n = len(source)
    random = {name for i in {0, n // 3, n // 2, n - 1} for name in drawn(take_view(source, i, 0), transforms, record.inputs)[1]}
    why = {name: next(iter(sorted(random & set(kept["inputs"]))), "") for name, kept in record.features.items()}
    kept = {name: kept for name, kept in record.features.items() if not why[name]}
    return dataclasses.replace(record, features=kept), {name: entry for name, entry in why.items() if entry}


def kind_of(objective: Objective) -> type[CacheRecord]:
    """UserError for an objective that learns from nothing but videos."""
    for kind in CACHES:
        if getattr(objective, "keeps", None) == kind.what:
            return kind
    raise UserError(f"{type(objective).__name__} learns from videos: there is nothing to keep of them")


def keeps_features(objective: Objective, folder: str) -> bool:
    """Whether the cache in `folder` does."""
    return bool(getattr(kind_of(objective).read(pathlib.Path(folder).expanduser()), "features", None))


def open_cache(source: Any, folder: str, wanted: CacheRecord) -> Cache:
    """The rows in `folder` in place of the videos of `source`; UserError where they are not `wanted`."""
    return CACHES[type(wanted)](source, folder, wanted)


def on_cache(objective: Objective, data: Mapping[str, Any]) -> Objective:
    """`objective` told the size of the clips whose tokens or latents it is given, where a split of `data` has a `cache`."""
    folders = [section["cache"] for section in data.values() if section and section.get("cache")]
    if not folders:
        return objective
    kind = kind_of(objective)
    clips = [tuple(kind.read(pathlib.Path(folder).expanduser()).clip) for folder in folders]
    if len(set(clips)) > 1:
        raise UserError(f"{' and '.join(folders)} are of clips of {' and '.join(map(str, clips))} (t h w): use one size")
    return objective.with_clip(clips[0])
