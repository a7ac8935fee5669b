"""3D-VQ tokenizer on the embedded sprites.

    magvid train --config=configs/vq3d_sprites.py:budget=quick --workdir=runs/sprites/tokenizer

budget=quick: 8-frame clips of the "small" world, minutes on two CPU cores; budget=long: 16-frame clips of the full world. smoke=1: seconds.
Not MAGVIT's published sizes, but its layers: patches of 2x2x2 pixels go in, because full-resolution layers of a few channels would take most
of a CPU's time, and one level of downsampling follows (docs of `magvid.models.vq3d.Encoder`).
"""

from ml_collections import ConfigDict

from configs import defaults

BUDGETS = {
    "quick": dict(world="small", frames=8, filters=32, codes=512, steps=700, batch=16, peak=2e-3),
    "long": dict(world="full", frames=16, filters=64, codes=1024, steps=3000, batch=16, peak=1.5e-3),
}
SIZE = 32  # pixels


def get_config(arg=None):
    args = defaults.parse_arg(arg, budget="quick", smoke=False)
    b = defaults.choose(BUDGETS, args["budget"], "budget")
    smoke = args["smoke"]
    config = ConfigDict()
    config.seed = 0
    config.steps = 2 if smoke else b["steps"]
    config.batch = 2 if smoke else b["batch"]
    config.objective = dict(
        target="magvid.objectives.vqvae:VQVAE",
        tokenizer=defaults.tokenizer(8 if smoke else b["filters"], (1, 2), (True,), 1, 32, b["codes"], patch=(2, 2, 2), groups=8),
    )
    clip = dict(target="magvid.data.sprites:Sprites", world=b["world"], frames=b["frames"], height=SIZE, width=SIZE)
    config.data = dict(
        train=dict(source=dict(clip, split="train", keys=("video", "label")), transforms=[], workers=0),
        eval=dict(source=dict(clip, split="validation", keys=("video", "label")), transforms=[], limit=64),
    )
    config.optim = dict(tokenizer=defaults.optimizer(b["peak"], warmup=1 if smoke else 50))
    config.ema = 0.99
    config.log_every = 1 if smoke else 10
    config.eval_every = 0 if smoke else 200
    config.save_every = 250
    config.keep = 2
    return config
