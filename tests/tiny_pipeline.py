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


def recipe(folder: pathlib.Path, **changes) -> runs.Recipe:
    """The config, and the folders of its networks."""
    batch = tiny.batch(2, *CLIP) | {"null_ids": np.ones((2, 5), np.int32)}
    params = tiny.fill(build(objective(PARTS)), batch)
    for name, spec in PARTS.items():
        arrays = {n: Stored.of(np.asarray(x)) for n, x in flatten(params[name]).items()}
        save(folder / name, name, spec, arrays, {})
    references = {name: dict(run=str(folder / name), weights="params") for name in PARTS}
    source = dict(target="magvid.data.folder:VideoFolder", path="nowhere", frames=3, height=16, width=24, fps=5)
    config = dict(
        steps=1, batch=2, optim={}, objective=objective(references, **changes), data=dict(train=dict(source=source, transforms=[WORDS]))
    )
    return runs.Recipe(folder / "pipeline.py", job.check_config(config))
