"""A pipeline of public weights in its smallest form: networks of tiny_diffusion in folders of their own, and the config."""

import pathlib

import numpy as np

import tiny_diffusion as tiny
from helpers import flatten
from magvid import job, runs
from magvid.build import build
from tools.convert import save
from tools.weights import Stored

CLIP = (3, 16, 24)
WORDS = dict(target="magvid.data.text:WordTokenizer", words=["a", "red", "disc", "blue"], length=5)
PARTS = dict(
    network=dict(target="tiny_diffusion:Network"),
    vae=dict(target="tiny_diffusion:VAE"),
    text=dict(target="tiny_diffusion:Text"),
)


def objective(parts: dict, **changes) -> dict:
    spec = dict(
        target="magvid.objectives.denoise:Denoise",
        network=parts["network"],
        vae=parts["vae"],
        conditioners=[
            dict(target="magvid.models.conditioners:TextTokens", text=parts["text"]),
            dict(target="magvid.models.conditioners:ImageLatent", vae=parts["vae"], aug=0.0, tell=False),
        ],
        drop=[[["text"], 0.2], [["image"], 0.2]],
        tasks=dict(T2V=["image"], I2V=["text"], TI2V=[]),
        sampling=dict(target="magvid.objectives.denoise:Sampling", steps=2, guidance=[[["text"], 2.0]]),
        clip=list(CLIP),
    )
    return spec | changes


def infilling(parts: dict) -> dict:
    """What makes the pipeline one of transitions: gaps of 1 to 4 of 8 frames, told text, boundary frames and their number."""
    return dict(
        conditioners=[
            dict(target="magvid.models.conditioners:TextTokens", text=parts["text"]),
            dict(
                target="magvid.models.conditioners:BoundaryTokens",
                vision=parts["vision"],
                prepare=dict(factory="tiny_diffusion:prepare"),
            ),
            dict(target="magvid.models.conditioners:Scalars", values=dict(length=3)),
        ],
        noising=dict(target="magvid.diffusion.mavin:Consecutive", start=[2, 4], end=[5, 6], sample=[2, 5]),
        drop=[[["text", "image"], 0.2]],
        tasks=dict(TVI=[]),
        sampling=dict(
            target="magvid.objectives.denoise:Sampling",
            steps=2,
            guidance=[[["text", "image"], 2.0]],
            mixer=dict(target="magvid.diffusion.mavin:FrameMixer"),
        ),
        clip=[8, 16, 24],
    )


def networks(folder: pathlib.Path, parts: dict, like, seed: int = 0) -> dict:
    """The objective with references to folders, which are written, of networks other for every seed. `like`(specs of the parts, or
    references to them) changes the objective.
    """
    made = build(objective(parts, **like(parts)))
    batch = tiny.batch(2, *made.clip) | {"null_ids": np.ones((2, 5), np.int32), "state_ids": np.ones((2, 2, 5), np.int32)}
    t, h, w = made.clip
    batch |= {"entities": np.zeros((2, t, 3 * h // 2, 3 * w // 2, 3), np.uint8), "entity_valid": np.ones((2, t), bool)}
    params = tiny.fill(made, batch)
    for name, spec in parts.items():
        arrays = {n: Stored.of(np.asarray(x) * (1 + seed)) for n, x in flatten(params[name]).items()}
        save(folder / name, name, spec, arrays, {})
    references = {name: dict(run=str(folder / name), weights="params") for name in parts}
    return objective(references, **like(references))


def recipe(folder: pathlib.Path, parts: dict = PARTS, like=lambda parts: {}, **changes) -> runs.Recipe:
    """The config, and the folders of its networks (see `networks`)."""
    made = networks(folder, parts, like) | changes
    frames, height, width = made["clip"]
    source = dict(target="magvid.data.folder:VideoFolder", path="nowhere", frames=frames, height=height, width=width, fps=5)
    config = dict(
        steps=1, batch=2, optim={}, objective=made, data=dict(train=dict(source=source, transforms=[WORDS]))
    )
    return runs.Recipe(folder / "pipeline.py", job.check_config(config))
