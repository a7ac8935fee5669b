"""Latent video diffusion on the embedded sprites, told a caption, a first frame, both or neither.

    magvid train --config=configs/diffusion_sprites.py:budget=quick --workdir=runs/sprites/diffusion

Latents of vae_sprites.py, captions by the text tower of clip_sprites.py, both frozen and taken from runs/sprites. SVD's layers at a
small size (so that its adapters fit), and its noise: sigmas, v-prediction, Euler's method. The first frame's latent is joined to
the noisy ones; caption and frame are each hidden from a part of the clips, so that one model has three tasks and guidance
for both. budget=quick: the "small" world, minutes on two CPU cores; budget=long: the full world. smoke=1: two steps. clips=20000 trains on
the first so many of the 2^20 clips, so that their latents can be kept (`magvid encode`).
"""

from ml_collections import ConfigDict

from configs import clip_sprites, defaults, vae_sprites

BUDGETS = {
    "quick": dict(world="small", frames=8, channels=(32, 64), layers=1, batch=8, steps=950, peak=4e-3, sampling=12),
    "long": dict(world="full", frames=8, channels=(48, 96), layers=1, batch=8, steps=1400, peak=3e-3, sampling=16),
}
TASKS = dict(T2V=("image",), I2V=("text",), TI2V=())


def network(b, smoke):
    channels = (8, 16) if smoke else b["channels"]
    return dict(
        target="magvid.models.unet:UNet",
        channels=channels,
        layers=1 if smoke else b["layers"],
        attention_levels=(False, True),
        heads=[max(c // 32, 1) for c in channels],
        res=dict(factory="magvid.models.temporal:BlendRes"),
        attention=dict(factory="magvid.models.temporal:BlendTransformer", tokens=("text",)),
        time_embedding=dict(factory="magvid.models.unet:TimeEmbedding"),
        groups=8,
    )


def get_config(arg=None):
    args = defaults.parse_arg(arg, budget="quick", smoke=False, clips=0)
    b, smoke = defaults.choose(BUDGETS, args["budget"], "budget"), args["smoke"]
    config = ConfigDict(dict(seed=0, steps=2 if smoke else b["steps"], batch=4 if smoke else b["batch"]))
    vae = dict(run="runs/sprites/vae", weights="ema", **defaults.made_by("vae_sprites", args))
    config.objective = dict(
        target="magvid.objectives.denoise:Denoise",
        network=network(b, smoke),
        vae=vae,
        conditioners=[
            dict(
                target="magvid.models.conditioners:TextTokens",
                text=dict(run="runs/sprites/clip", part="clip.text", weights="ema", **defaults.made_by("clip_sprites", args)),
            ),
            dict(target="magvid.models.conditioners:ImageLatent", vae=vae, aug=0.0, tell=False),
        ],
        schedule=dict(target="magvid.diffusion.schedules:EDM", least=0.01, most=50.0),
        prediction=dict(target="magvid.diffusion.predictions:V"),
        times=dict(factory="magvid.diffusion.schedules:log_normal", mean=0.5, std=1.5),
        drop=[[["text"], 0.15], [["image"], 0.35], [["text", "image"], 0.1]],
        tasks=TASKS,
        sampling=dict(
            target="magvid.objectives.denoise:Sampling",
            sampler=dict(target="magvid.diffusion.samplers:EulerEDM"),
            steps=2 if smoke else b["sampling"],
            guidance=[[["text"], 5.0]],
        ),
    )
    clip = dict(
        target="magvid.data.sprites:Sprites", world=b["world"], frames=b["frames"], height=vae_sprites.SIZE, width=vae_sprites.SIZE
    )
    keys = ("video", "label", "caption", "colour", "texture")
    config.data = dict(
        train=dict(source=dict(clip, split="train", keys=keys[:3]), transforms=[clip_sprites.TOKENIZER], workers=0),
        eval=dict(source=dict(clip, split="validation", keys=keys), transforms=[clip_sprites.TOKENIZER], limit=128),
    )
    if args["clips"]:
        config.data.train.source = defaults.views(config.data.train.source, clips=args["clips"])
    config.metrics = [dict(target="magvid.metrics.sprites:SpriteJudge", world=b["world"])]
    config.optim = dict(network=defaults.muon(b["peak"], smoke))
    config.ema = 0.995
    return defaults.paced(config, smoke)
