"""I3D and C3D give the numbers that the official evaluation's ports gave, with weights made of their names."""

import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import Golden, flatten, nest, relative_error
from magvid.models.c3d import C3D
from magvid.models.i3d import I3D
from magvid.models.resize import resize_bilinear

GOLDEN = Golden("metrics")


def golden_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weight of this name in the official port (golden README, procedural parameters)."""
    z = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF).standard_normal(shape).astype(np.float32)
    return 0.05 * z if name.endswith(("/bias", "/beta")) else z / np.float32(np.sqrt(np.prod(shape[:-1])))


def golden_video(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """In [0, 1]."""
    b, t, h, w, c = np.meshgrid(*map(np.arange, shape), indexing="ij")
    waves = 0.25 * np.sin(0.37 * h + 0.21 * w * (1 + 0.1 * c) + 0.5 * t + 1.3 * b + seed)
    return np.clip(0.5 + waves + 0.2 * np.cos(0.11 * h * (1 + c) - 0.23 * w + 0.3 * t * (c + 1) + 0.7 * seed), 0, 1).astype(np.float32)


VIDEO = golden_video((1, 16, 64, 64, 3), 3)


def shapes_of(module, clip) -> dict[str, tuple[int, ...]]:
    return {n: x.shape for n, x in flatten(jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, *clip, 3)))["params"]).items()}


def official_i3d(name: str) -> str:
    """Our name -> the official port's."""
    if name.startswith("logits/"):
        return name.replace("logits/", "Logits.Conv3d_0c_1x1/conv_3d/")
    name = re.sub(r"(Branch_\d)_(Conv)", r"\1.\2", name).replace("/conv/kernel", "/conv_3d/kernel")
    ends = {"/bias": "/batch_norm/beta", "/mean": "/batch_norm/moving_mean", "/var": "/batch_norm/moving_variance"}
    return next((name.removesuffix(ours) + theirs for ours, theirs in ends.items() if name.endswith(ours)), name)


def i3d_params() -> dict[str, np.ndarray]:
    found = {}
    for name, shape in shapes_of(I3D(), (16, 224, 224)).items():
        official = official_i3d(name)
        x = golden_weight(official, (1, 1, 1, *shape) if name == "logits/kernel" else (1, 1, 1, 1, *shape) if "batch_norm" in official else shape)
        if official.endswith("moving_variance"):
            x = 1 + 0.1 * np.abs(x)
        found[name] = (0.05 * x if official.endswith("moving_mean") else x).reshape(shape)
    return found


def test_i3d_gives_the_official_numbers():
    params = i3d_params()
    assert {official_i3d(name) for name in params} == set(GOLDEN["i3d_param_names"].tolist())
    assert sum(x.size for x in params.values()) == GOLDEN["i3d_param_count"] == 12_704_544
    with jax.default_matmul_precision("highest"):
        found = jax.jit(I3D().apply)({"params": nest(params)}, 2 * resize_bilinear(VIDEO, (224, 224), "first") - 1)
    assert relative_error(found.pool, GOLDEN["i3d_pool"]) < 1e-5 and relative_error(found.logits, GOLDEN["i3d_logits_mean"]) < 1e-5


def test_c3d_gives_the_official_numbers():
    shapes = shapes_of(C3D(), (16, 112, 112))
    assert set(shapes) - {"mean"} == set(GOLDEN["c3d_param_names"].tolist()) - {"x_offset"}
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == GOLDEN["c3d_param_count"] == 79_011_685
    params = {name: np.full(shape, 100, np.float32) if name == "mean" else golden_weight(name, shape) for name, shape in shapes.items()}
    params["conv1a/kernel"] = params["conv1a/kernel"] / 100
    with jax.default_matmul_precision("highest"):
        found = jax.jit(C3D().apply)({"params": nest(params)}, resize_bilinear(VIDEO, (112, 112), "all"))
    assert relative_error(found, GOLDEN["c3d_logits"]) < 1e-5


@pytest.mark.parametrize(
    "module, clip, message",
    [
        (I3D(), (8, 224, 224), "at least 9 frames, got 8 frames of 224x224"),
        (I3D(), (16, 224, 128), "reads 224x224 pixels .* got 16 frames of 224x128"),
        (C3D(), (12, 112, 112), r"16 frames of 112x112 pixels, got \(b t h w c\) \(1, 12, 112, 112, 3\)"),
    ],
)
def test_other_clips_are_refused(module, clip, message):
    with pytest.raises(ValueError, match=message):
        shapes_of(module, clip)
