"""3D-VQ tokenizer on the embedded sprites.

    magvid train --config=configs/vq3d_sprites.py:budget=quick --workdir=runs/sprites/tokenizer

Clips of 16x32x32. budget=quick: the "small" world, 4x4x4 tokens a clip, minutes on two CPU cores; budget=long: the full
world, 4x8x8 tokens. smoke=1: two steps. MAGVIT's layers, but not its published sizes: patches of pixels go in, because
full-resolution layers of a few channels would take most of a CPU's time (see `magvid.models.vq3d.Encoder`). What made
these budgets, one run each in the small world on one core: Muon instead of Adam (24.3 dB in place of 21.7 after 1500
steps), 16 filters instead of 32 (as good per step, at 0.4 times the cost), batches of 4 instead of 16 (22.5 dB in place
of 20.2 after as many clips).

inflate=central or average: begins as the 2D-VQ of vq2d_sprites.py in runs/sprites/tokenizer2d. Its sizes are other
ones, for as many tokens, because a patch that spans frames has no counterpart in two dimensions: levels divide time
instead. inflate=0: these sizes, at random. With smoke=1 they begin at random too.
"""

from ml_collections import ConfigDict

from configs import defaults

BUDGETS = {
    "quick": dict(
        world="small", patch=(2, 4, 4), multipliers=(1, 2), filters=16, codes=256, padded=0.3, steps=3000, peak=4e-3
    ),
    "long": dict(
        world="full", patch=(4, 4, 4), multipliers=(1,), filters=32, codes=1024, padded=0.15, steps=16000, peak=4e-3
    ),
}
INFLATED = {
    "quick": dict(patch=(1, 2, 2), multipliers=(1, 2, 2)),
    "long": dict(patch=(1, 1, 1), multipliers=(1, 2, 2), filters=16),
}
FRAMES, SIZE = 16, 32  # pixels


def latent(budget, sizes=BUDGETS):
    """The grid (t', h', w'): after the patches every further level halves each axis."""
    b = sizes[budget]
    halves = 2 ** (len(b["multipliers"]) - 1)
    return tuple(n // patch // halves for n, patch in zip((FRAMES, SIZE, SIZE), b["patch"]))


def tokenizer(b, smoke, planar=False):
    filters, temporal = 8 if smoke else b["filters"], (True,) * (len(b["multipliers"]) - 1)
    sizes = dict(patch=b["patch"], norm="LayerNorm", entropy=0.01, planar=planar)
    return defaults.tokenizer(filters, b["multipliers"], temporal, 1, 32, b["codes"], **sizes)


def get_config(arg=None):
    args = defaults.parse_arg(arg, budget="quick", smoke=False, inflate="")
    init = defaults.inflate(args["inflate"] or "0", "runs/sprites/tokenizer2d")
    b = defaults.choose(BUDGETS, args["budget"], "budget")
    b = b | INFLATED[args["budget"]] if args["inflate"] else b
    smoke = args["smoke"]
    config = ConfigDict()
    config.seed = 0
    config.steps = 2 if smoke else b["steps"]
    config.batch = 4
    config.objective = dict(
        target="magvid.objectives.vqgan:VQGAN",
        tokenizer=tokenizer(b, smoke),
        reconstruction=10.0,  # there is no perceptual and no adversarial loss beside it
        restart=False,
        padded=b["padded"],  # most cells of so small a grid lie at the border of some given region
    )
    clip = dict(target="magvid.data.sprites:Sprites", world=b["world"], frames=FRAMES, height=SIZE, width=SIZE)
    config.data = dict(
        train=dict(source=dict(clip, split="train", keys=("video", "label")), transforms=[], workers=0),
        eval=dict(
            source=dict(clip, split="validation", keys=("video", "label", "colour", "texture")), transforms=[], limit=64
        ),
    )
    config.metrics = [dict(target="magvid.metrics.sprites:SpriteJudge", world=b["world"])]
    config.optim = dict(tokenizer=defaults.muon(b["peak"], smoke))
    config.ema = 0.99
    config.log_every = 1 if smoke else 10
    config.eval_every = 0 if smoke else b["steps"] // 15
    config.save_every = 500
    config.keep = 2
    if init and not smoke:
        config.init = init
    return config
