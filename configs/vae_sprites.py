"""The autoencoder of the diffusion models on sprites: Stable Diffusion's layers, a quarter of the height and width.

    magvid train --config=configs/vae_sprites.py:budget=quick --workdir=runs/sprites/vae

Frames of 32x32, each by itself; `kl_weight` is such that the latents have a standard deviation near 1, so that `scaling` is 1. budget=quick:
the "small" world, minutes on two CPU cores; budget=long: the full world. world=NAME: another one. latent: numbers per latent; the fine
dots and checks of textures want 8 and steps=1500. kl: its weight, and scaling: 1 / the standard deviation that latents then have (eval/latent_std).
smoke=1: two steps.
"""

from ml_collections import ConfigDict

from configs import defaults

BUDGETS = {
    "quick": dict(world="small", channels=(16, 32, 32), layers=1, steps=700, peak=4e-3),
    "long": dict(world="full", channels=(32, 64, 64), layers=1, steps=1800, peak=3e-3),
}
FACTOR, SIZE = 4, 32  # pixels per latent, pixels


def get_config(arg=None):
    args = defaults.parse_arg(arg, budget="quick", world="", latent=4, steps=0, kl=2e-4, scaling=1.0, smoke=False)
    defaults.within(args, latent=(1, 1000), steps=(0, 10**9), kl=(0, 1), scaling=(1e-3, 1e3))
    b, smoke = defaults.choose(BUDGETS, args["budget"], "budget"), args["smoke"]
    config = ConfigDict(dict(seed=0, steps=2 if smoke else args["steps"] or b["steps"], batch=4))
    config.objective = dict(
        target="magvid.objectives.autoencoder:Autoencoder",
        vae=dict(
            target="magvid.models.vae:AutoencoderKL",
            channels=(8, 8, 8) if smoke else b["channels"],
            layers=b["layers"],
            latent=args["latent"],
            groups=8,
            scaling=args["scaling"],
        ),
        kl_weight=args["kl"],
    )
    clip = dict(target="magvid.data.sprites:Sprites", world=args["world"] or b["world"], frames=4, height=SIZE, width=SIZE, keys=("video",))
    config.data = dict(
        train=dict(source=dict(clip, split="train"), transforms=[], workers=0),
        eval=dict(source=dict(clip, split="validation"), transforms=[], limit=64),
    )
    config.optim = dict(vae=defaults.muon(b["peak"], smoke))
    config.ema = 0.99
    return defaults.paced(config, smoke, evaluations=5)
