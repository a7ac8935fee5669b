"""What a cache of tokens must be made of to serve a config: the same words when it is written and when it is read."""

import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from magvid.data.tokens import TokenRecord
from magvid.data.views import check_views, count_views, take_view
from magvid.state import Objective
from magvid.types import UserError


def describe_tokens(
    config: Mapping[str, Any], objective: Objective, sources: Mapping[str, Mapping[str, str]], split: str, source: Any
) -> TokenRecord:
    """The record of tokens for `config.data.<split>`, whose `source` is given and whose first clip is read.

    `config` without references; `sources` = {frozen group: {"run", "weights", "hash"}}. UserError where tokens cannot be
    kept: they change while their tokenizer is trained, and without an end of views there are no rows to number.
    """
    check_objective(objective)
    if "tokenizer" not in sources:
        raise UserError(
            "tokens can be kept where the tokenizer is frozen, and this config trains it: train it alone first, and give "
            'objective.tokenizer = dict(run="FOLDER")'
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
    return TokenRecord(
        tokenizer={**sources["tokenizer"], "spec": config["objective"]["tokenizer"]},
        data=data,
        tasks=objective.conditions(clip),
        clip=clip,
        latent=objective.latent_shape((1, *clip, 3)),
        codes=objective.vocab.codebook,
        labelled="label" in first,
    )


def on_tokens(objective: Objective, data: Mapping[str, Any]) -> Objective:
    """`objective` told the size of the clips whose tokens it is given, where a split of `data` has a `cache`."""
    folders = [section["cache"] for section in data.values() if section and section.get("cache")]
    if not folders:
        return objective
    check_objective(objective)
    clips = [tuple(TokenRecord.read(pathlib.Path(folder).expanduser()).clip) for folder in folders]
    if len(set(clips)) > 1:
        raise UserError(f"{' and '.join(folders)} are of clips of {' and '.join(map(str, clips))} (t h w): use one size")
    return objective.with_clip(clips[0])


def check_objective(objective: Objective) -> None:
    if not hasattr(objective, "with_clip"):
        raise UserError(f"{type(objective).__name__} learns from videos: there are no tokens to keep, and none to read")
