"""3D-VQ tokenizer on the embedded sprites.

    magvid train --config=configs/vq3d_sprites.py:budget=quick --workdir=runs/sprites/tokenizer

Clips of 16x32x32. budget=quick: the "small" world, 64 tokens a clip, minutes on two CPU cores; budget=long: the full
world, 256 tokens. smoke=1: seconds. MAGVIT's layers, but not its published sizes: patches of pixels go in, because
full-resolution layers of a few channels would take most of a CPU's time, and one level of downsampling follows (see
`magvid.models.vq3d.Encoder`). Batches are small and steps many: of 3200 clips, 4 a step made 22.5 dB, 16 a step 20.2
(one run each, an earlier choice of shapes). The numbers of "long" are not tuned.
"""

from ml_collections import ConfigDict

from configs import defaults

BUDGETS = {
    "quick": dict(world="small", patch=(2, 4, 4), filters=16, codes=256, steps=3000, batch=4, peak=4e-3),
    "long": dict(world="full", patch=(2, 2, 2), filters=16, codes=1024, steps=12000, batch=4, peak=4e-3),
}
FRAMES, SIZE = 16, 32  # pixels


def latent(budget):
    """The grid (t', h', w'): one level halves every axis after the patches."""
    pt, ph, pw = BUDGETS[budget]["patch"]
    return (FRAMES // pt // 2, SIZE // ph // 2, SIZE // pw // 2)


def get_config(arg=None):
    args = defaults.parse_arg(arg, budget="quick", smoke=False)
    b = defaults.choose(BUDGETS, args["budget"], "budget")
    smoke = args["smoke"]
    config = ConfigDict()
    config.seed = 0
    config.steps = 2 if smoke else b["steps"]
    config.batch = 4 if smoke else b["batch"]
    config.objective = dict(
        target="magvid.objectives.vqvae:VQVAE",
        tokenizer=defaults.tokenizer(
            8 if smoke else b["filters"], (1, 2), (True,), 1, 32, b["codes"], patch=b["patch"], norm="LayerNorm",
            entropy=0.01
        ),
        reconstruction=10.0,  # there is no perceptual and no adversarial loss beside it
        padded=0.3,  # of 4x4x4 cells most lie at a border of the given region
    )
    clip = dict(target="magvid.data.sprites:Sprites", world=b["world"], frames=FRAMES, height=SIZE, width=SIZE)
    config.data = dict(
        train=dict(source=dict(clip, split="train", keys=("video", "label")), transforms=[], workers=0),
        eval=dict(
            source=dict(clip, split="validation", keys=("video", "label", "colour", "texture")), transforms=[], limit=64
        ),
    )
    config.metrics = [dict(target="magvid.metrics.sprites:SpriteJudge", world=b["world"])]
    config.optim = dict(tokenizer=defaults.muon(b["peak"], 1 if smoke else 50))
    config.ema = 0.99
    config.log_every = 1 if smoke else 10
    config.eval_every = 0 if smoke else 200
    config.save_every = 250
    config.keep = 2
    return config
