"""COMMIT: the masked transformer for all ten tasks on the embedded sprites, on a tokenizer trained by vq3d_sprites.py.

    magvid train --config=configs/commit_sprites.py:budget=quick --workdir=runs/sprites/transformer
        --config.objective.tokenizer.run=runs/sprites/tokenizer

The budgets are those of vq3d_sprites.py. Frame prediction comes twice: from one frame, and from five (same task token).
smoke=1 takes two steps of a tiny model, on a tokenizer trained with smoke=1. clips=20000 trains on the first so many of the 2^20 clips, so
that their tokens can be kept (`magvid encode`).
"""

from configs import defaults, vq3d_sprites

# How often each task is trained: the class is seen in two of eleven only, so these come more often.
TASKS = dict(FP=1, FI=1, OPC=1, OPV=1, OPH=1, OPD=1, IPC=1, IPD=1, CG=3, CFP=2, FP5=1)
CLASSES = {"small": 18, "full": 66}  # shapes x actions of the world

BUDGETS = {
    "quick": dict(width=128, depth=4, heads=4, steps=8000, batch=8, peak=3e-3, warmup=100),
    "long": dict(width=160, depth=4, heads=5, steps=7500, batch=8, peak=2.5e-3, warmup=200),
}


def get_config(arg=None):
    args = defaults.parse_arg(arg, budget="quick", smoke=False, clips=0)
    b = defaults.choose(BUDGETS, args["budget"], "budget")
    smoke = args["smoke"]
    tokens = vq3d_sprites.BUDGETS[args["budget"]]
    config = vq3d_sprites.get_config(f"budget={args['budget']},smoke={int(smoke)}")  # the same clips
    if args["clips"]:
        config.data.train.source = defaults.views(config.data.train.source, clips=args["clips"])
    config.steps = 2 if smoke else b["steps"]
    config.batch = 4 if smoke else b["batch"]
    config.objective = defaults.masked(
        codes=tokens["codes"],
        classes=CLASSES[tokens["world"]],
        latent=vq3d_sprites.latent(args["budget"]),
        width=32 if smoke else b["width"],
        depth=1 if smoke else b["depth"],
        heads=2 if smoke else b["heads"],
        tasks=tuple(TASKS),
        overlap=5,  # as FP5: one frame does not tell where a sprite goes
        tokenizer=dict(run="runs/sprites/tokenizer", weights="ema", **defaults.made_by("vq3d_sprites", args)),
        # a short training leaves the tails of the distributions too heavy: 1 makes FP5's skill 0.38, 0.6 makes it 0.45
        sampler=dict(factory="magvid.masked.decode:categorical", temperature=0.6),
    )
    for data in (config.data.train, config.data.eval):
        data.transforms = [
            dict(target="magvid.data.pipeline:MaskedView", tasks=len(TASKS), weights=tuple(TASKS.values()))
        ]
    config.optim = dict(
        transformer=defaults.adamw(b["peak"], 1 if smoke else b["warmup"], b2=0.96, weight_decay=0.045)
    )
    config.ema = 0.99
    config.eval_every = 0 if smoke else b["steps"] // 15
    return config
