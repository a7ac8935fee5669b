"""A small image-to-video model of the embedded sprites, without texts: what AID's adapters are trained on (aid_sprites.py).

    magvid train --config=configs/i2v_sprites.py:budget=quick --workdir=runs/sprites/i2v

Stable Video Diffusion's layers, noise, prediction and conditions at a small size, from nothing, on the latents of vae_sprites.py: of the first
frame it reads the embedding (by the image tower of clip_sprites.py; one token) and the latent. Both are frozen and taken from
runs/sprites. It learns to make a sprite move somehow: which way, nobody tells it, nor does the first frame (worlds "...-middle" of
magvid.data.sprite_world). budget=quick: the small world; budget=long: the full one. smoke=1: two steps. clips=20000 trains on the first so
many of the 2^20 clips, so that their latents can be kept.
"""

from ml_collections import ConfigDict

from configs import defaults, diffusion_sprites, vae_sprites

BUDGETS = {
    "quick": dict(world="small-middle", frames=8, channels=(32, 64), layers=1, batch=8, steps=2400, peak=4e-3, sampling=12),
    "long": dict(world="full-middle", frames=8, channels=(48, 96), layers=1, batch=8, steps=4000, peak=3e-3, sampling=16),
}
EDM = dict(target="magvid.diffusion.schedules:EDM", least=0.01, most=50.0)
NOISE = dict(factory="magvid.diffusion.schedules:log_normal", mean=0.5, std=1.5)
V = dict(target="magvid.diffusion.predictions:V")


def resized():
    """Frames as the image tower of the sprites reads them."""
    return dict(factory="magvid.models.clip:shortest_side", size=[vae_sprites.SIZE] * 2)


def network(b, smoke):
    """That of diffusion_sprites.py, with attention on the finest level as well, as SVD's; it reads the image's token in place of a text's."""
    spec = diffusion_sprites.network(b, smoke)
    levels = dict(channels=(8,), heads=(1,), attention_levels=(True,)) if smoke else dict(attention_levels=(True, True))
    return spec | levels | dict(attention=dict(spec["attention"], tokens=("image",)))


def sampling(b, smoke, guidance):
    return dict(
        target="magvid.objectives.denoise:Sampling",
        sampler=dict(target="magvid.diffusion.samplers:EulerEDM"),
        steps=2 if smoke else b["sampling"],
        guidance=guidance,
    )


def get_config(arg=None):
    args = defaults.parse_arg(arg, budget="quick", smoke=False, seed=0, clips=0)
    b, smoke = defaults.choose(BUDGETS, args["budget"], "budget"), args["smoke"]
    config = ConfigDict(dict(seed=args["seed"], steps=2 if smoke else b["steps"], batch=4 if smoke else b["batch"]))
    vae = dict(run="runs/sprites/vae", weights="ema", **defaults.made_by("vae_sprites", args))
    vision = dict(run="runs/sprites/clip", part="clip.vision", weights="ema", **defaults.made_by("clip_sprites", args))
    config.objective = dict(
        target="magvid.objectives.denoise:Denoise",
        network=network(b, smoke),
        vae=vae,
        conditioners=[
            dict(target="magvid.models.conditioners:ImageTokens", vision=vision, prepare=resized()),
            dict(target="magvid.models.conditioners:ImageLatent", vae=vae, aug=0.0, tell=False),
        ],
        schedule=EDM,
        prediction=V,
        times=NOISE,
        drop=[[["image"], 0.1]],
        tasks=dict(I2V=()),
        sampling=sampling(b, smoke, []),
    )
    size = dict(frames=b["frames"], height=vae_sprites.SIZE, width=vae_sprites.SIZE)
    clip = dict(target="magvid.data.sprites:Sprites", world=b["world"], **size)
    keys = ("video", "label", "colour", "texture")
    config.data = dict(
        train=dict(source=dict(clip, split="train", keys=keys[:2]), transforms=[], workers=0),
        eval=dict(source=dict(clip, split="validation", keys=keys), transforms=[], limit=128),
    )
    if args["clips"]:
        config.data.train.source = defaults.views(config.data.train.source, clips=args["clips"])
    config.metrics = [dict(target="magvid.metrics.sprites:SpriteJudge", world=b["world"])]
    config.optim = dict(network=defaults.muon(b["peak"], smoke))
    config.ema = 0.995
    return defaults.paced(config, smoke)
