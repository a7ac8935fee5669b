"""What a cache must be made of to serve a config: the same words when it is written and when it is read."""

import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from magvid.build import build
from magvid.data.cache import Cache, CacheRecord
from magvid.data.latents import LatentCache, LatentRecord
from magvid.data.stream import Record, Transform
from magvid.data.tokens import TokenCache, TokenRecord
from magvid.data.views import check_views, count_views, take_view
from magvid.state import Objective
from magvid.types import UserError

# What an objective keeps of a clip (its attribute `keeps`), and what reads that.
CACHES: dict[type[CacheRecord], type[Cache]] = {TokenRecord: TokenCache, LatentRecord: LatentCache}


def describe(
    config: Mapping[str, Any], objective: Objective, sources: Mapping[str, Mapping[str, str]], split: str, source: Any
) -> CacheRecord:
    """The record of what can be kept of `config.data.<split>`, whose `source` is given and whose first clip is read.

    `config` without references; `sources` = {frozen group: {"run", "weights", "hash"}}. UserError where nothing can be
    kept: tokens and latents change while what makes them is trained, and without an end of views there are no rows to number.
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
    _check_transforms(build(tuple(config["data"][split].get("transforms", ()))), first, split)
    encoder = {**sources[kind.encoder], "spec": config["objective"][kind.encoder]}
    return kind(**{kind.encoder: encoder}, data=data, clip=clip, **objective.kept(first))


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


def kind_of(objective: Objective) -> type[CacheRecord]:
    """UserError for an objective that learns from nothing but videos."""
    for kind in CACHES:
        if getattr(objective, "keeps", None) == kind.what:
            return kind
    raise UserError(f"{type(objective).__name__} learns from videos: there is nothing to keep of them")


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
