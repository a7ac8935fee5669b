"""A small two-tower CLIP on the embedded sprites and their captions: no pretrained one can be had without a download.

    magvid train --config=configs/clip_sprites.py:budget=quick --workdir=runs/sprites/clip

The budgets are those of vq3d_sprites.py: the small world, and the full one, where six of sixteen frames tell bouncing
from jumping. Held-out retrieval (`eval/retrieval_at_1`) is over 64 clips of 64 different captions: in the small world
there are only 72. world=NAME: another world; steps: not those of the budget; motion=1: half of the
texts it learns from say the motion alone; patch: pixels of a side of what is one token of the picture, where not 8. smoke=1 takes two steps of a tiny model.

The vocabulary holds every word of the captions, instructions and states of the full world, so that all runs on sprites
share one tokenizer.
"""

from ml_collections import ConfigDict

from configs import defaults, vq3d_sprites

WORDS = (
    ", 0 1 2 3 4 5 6 7 8 9 a an around at background blue bottom bounce bounces brown by centre checkered circle circles "
    "clockwise counterclockwise cross cyan degrees disc dotted down green grey grow grows in is it jump jumps keep large "
    "left magenta make medium move moves olive on orange red right ring shaded shrink shrinks slate small spin spins "
    "square stands star still striped the then to top triangle turned up white yellow"
).split()
LENGTH = 24  # the longest instruction of three actions has 22 words
TOKENIZER = dict(target="magvid.data.text:WordTokenizer", words=WORDS, length=LENGTH, key="caption")
VOCABULARY = len(WORDS) + 4

BUDGETS = {
    "quick": dict(
        frames=(0, 5, 10, 15), width=64, depth=2, heads=4, patch=8, projection=64, batch=64, steps=1000, peak=2e-3
    ),
    "long": dict(
        frames=(0, 3, 6, 9, 12, 15), width=64, depth=2, heads=4, patch=8, projection=64, batch=64, steps=1800, peak=2e-3
    ),
}


def clip(b, smoke):
    width = 16 if smoke else b["width"]
    sizes = dict(width=width, depth=1 if smoke else b["depth"], heads=b["heads"], mlp=4 * width)
    sizes |= dict(projection=16 if smoke else b["projection"], activation=dict(factory="magvid.models.clip:quick_gelu"))
    image = (vq3d_sprites.SIZE,) * 2
    return dict(
        target="magvid.models.clip:CLIP",
        text=dict(target="magvid.models.clip:TextTower", vocab=VOCABULARY, length=LENGTH, **sizes),
        vision=dict(target="magvid.models.clip:VisionTower", patch=b["patch"], image=image, **sizes),
    )


def get_config(arg=None):
    args = defaults.parse_arg(arg, budget="quick", world="", steps=0, motion=False, patch=0, smoke=False)
    defaults.within(args, steps=(0, 10**9), patch=(0, vq3d_sprites.SIZE))
    b, smoke = defaults.choose(BUDGETS, args["budget"], "budget"), args["smoke"]
    b = b | dict(patch=args["patch"] or b["patch"])
    config = ConfigDict(dict(seed=0, steps=2 if smoke else args["steps"] or b["steps"], batch=4 if smoke else b["batch"]))
    towers = clip(b, smoke)
    width = towers["vision"]["projection"]
    config.objective = dict(
        target="magvid.objectives.contrastive:Contrastive",
        clip=towers,
        temporal=dict(
            target="magvid.models.clip:TemporalPool", frames=len(b["frames"]), depth=1, heads=b["heads"], mlp=4 * width
        ),
    )
    clips = vq3d_sprites.get_config(f"budget={args['budget']}").data.to_dict()  # the same
    sources = {split: clips[split]["source"] | dict(keys=("video", "label", "caption")) for split in ("train", "eval")}
    count = 8 if smoke else 64
    if args["world"]:
        sources = {split: source | dict(world=args["world"]) for split, source in sources.items()}
    sources["eval"] = dict(target="magvid.data.text:DistinctTexts", source=sources["eval"], count=count, key="caption")
    transforms = [TOKENIZER, dict(target="magvid.data.pipeline:Frames", indices=b["frames"])]
    config.data = {split: dict(source=source, transforms=transforms) for split, source in sources.items()}
    if args["motion"]:
        config.data.train.source.keys = (*sources["train"]["keys"], "motion")
        either = dict(target="magvid.data.text:OneOf", keys=("caption", "motion"))
        config.data.train.transforms = [either, dict(TOKENIZER, key="text"), *transforms[1:]]
    config.data.train.workers = 0
    config.data.eval.batch = count  # all in one
    optim = defaults.adamw(b["peak"], 1 if smoke else 100, b2=0.98, weight_decay=0.05)
    config.optim = dict(clip=optim, temporal=optim)
    config.ema = 0.99
    config.log_every = 1 if smoke else 20
    config.eval_every = 0 if smoke else 100
    config.save_every = 500
    config.keep = 2
    return config
