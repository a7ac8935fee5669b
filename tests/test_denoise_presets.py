"""The published parts fit each other: U-Net, autoencoder, CLIP and conditioners as one objective, by their shapes."""

import jax
import numpy as np
import pytest

from configs import clips, unets, vaes
from magvid.build import build

CHANNELS = dict(channels=(32, 64), layers=1, attention_levels=(True, False), heads=(2, 4), epsilon=1e-5)
AUTOENCODER = dict(channels=(32, 64, 64, 64), layers=1)
TOWER = dict(depth=1, mlp=64)
TEXT = dict(
    target="magvid.models.conditioners:TextTokens", text=clips.TOWERS["openclip_h_text"] | TOWER, null=(49406, *(49407,) * 76)
)
SVD = [
    dict(
        target="magvid.models.conditioners:ImageTokens",
        vision=clips.TOWERS["openclip_h_vision"] | TOWER,
        prepare=dict(factory="magvid.models.clip:prepare"),
    ),
    dict(target="magvid.models.conditioners:ImageLatent", vae=vaes.VAES["svd"] | AUTOENCODER),
    dict(target="magvid.models.conditioners:Scalars", values=dict(fps=6, motion=127)),
]
TOLD_TEXT = dict(
    conditioners=[TEXT],
    drop=((("text",), 0.1),),
    sampling=dict(target="magvid.objectives.denoise:Sampling", steps=2, guidance=((("text",), 7.5),)),
)
TOLD_IMAGE = dict(
    conditioners=SVD,
    drop=((("image",), 0.1),),
    sampling=dict(
        target="magvid.objectives.denoise:Sampling",
        steps=2,
        guidance=((("image",), (1.0, 3.0)),),
        sampler=dict(target="magvid.diffusion.samplers:EulerEDM"),
    ),
    schedule=dict(target="magvid.diffusion.schedules:EDM"),
    prediction=dict(target="magvid.diffusion.predictions:V"),
    times=dict(factory="magvid.diffusion.schedules:log_normal"),
    augmentation=(-3.0, 0.5),
)
OBJECTIVES = {
    "sd21": dict(vae=vaes.VAES["sd"] | AUTOENCODER, **TOLD_TEXT),
    "modelscope": dict(vae=vaes.VAES["sd"] | AUTOENCODER, **TOLD_TEXT),
    "svd": dict(vae=vaes.VAES["svd"] | AUTOENCODER, **TOLD_IMAGE),
}


@pytest.mark.parametrize("preset", OBJECTIVES)
def test_parts_of_a_preset_train_and_sample_together(preset):
    network = dict(target="magvid.models.unet:UNet", **unets.PRESETS[preset] | CHANNELS)
    objective = build(dict(target="magvid.objectives.denoise:Denoise", network=network, **OBJECTIVES[preset]))
    batch = {"video": np.zeros((2, 3, 32, 48, 3), np.uint8), "text_ids": np.zeros((2, 77), np.int32)}
    key = jax.random.key(0)
    params = jax.eval_shape(objective.init, key, batch)
    towers = {"vision"} if preset == "svd" else {"text"}
    assert set(params) == {"network", "vae"} | towers
    entrance = params["network"]["conv_in"]["kernel"].shape
    assert entrance == (3, 3, unets.INPUTS[preset]["channels"], 32)
    losses, _ = jax.eval_shape(lambda p: objective.loss(p, {}, batch, key, 0, True), params)
    assert {group: x.shape for group, x in losses.items()} == {"network": ()}
    assert jax.eval_shape(objective.sample, params, batch, key).shape == (2, 3, 32, 48, 3)
