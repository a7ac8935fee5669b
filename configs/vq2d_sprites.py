"""2D-VQ tokenizer on frames of the embedded sprites, and what a 3D-VQ of them can begin as:

    magvid train --config=configs/vq2d_sprites.py:budget=quick --workdir=runs/sprites/tokenizer2d
    magvid train --config=configs/vq3d_sprites.py:budget=quick,inflate=central --workdir=runs/sprites/tokenizer

The budgets are those of vq3d_sprites.py; four of sixteen frames, as MAGVIT takes of a video. smoke=1 takes two steps.
"""

from configs import defaults, vq3d_sprites

STEPS = {"quick": 1500, "long": 4000}


def get_config(arg=None):
    args = defaults.parse_arg(arg, budget="quick", smoke=False)
    b = defaults.choose(vq3d_sprites.BUDGETS, args["budget"], "budget") | vq3d_sprites.INFLATED[args["budget"]]
    config = vq3d_sprites.get_config(arg)  # the same clips
    config.objective.tokenizer = vq3d_sprites.tokenizer(b, args["smoke"], planar=True)
    config.objective.padded = 0.0  # the regions given to a task are of whole videos
    for data in (config.data.train, config.data.eval):
        data.transforms = [dict(target="magvid.data.pipeline:Frames", indices=(3, 6, 10, 13))]
    config.metrics = []  # of videos
    if not args["smoke"]:
        config.steps = STEPS[args["budget"]]
        config.eval_every = config.steps // 15
    return config
