"""AID on the embedded sprites: what a small image-to-video model (i2v_sprites.py), frozen, learns of instructions by adapters.

    magvid train --config=configs/aid_sprites.py:budget=quick --workdir=runs/sprites/aid
    magvid predict first.png --run=runs/sprites/aid --instruction="move the red disc to the left" --states=... --out=a.mp4

Base, autoencoder and towers are frozen and taken from runs/sprites; the predicted states are the true ones. The paper's ablations are
arguments, see aid.py: mcond=none|decoupled, branches=upper|lower, states=instruction, spatial=0, short=0, long=0, given=2, learned=after,
mask=1, grey=1 (the base has seen no grey frames: it was trained as SVD was). tune=full trains the whole network, which then begins as the
base, beside the same condition and without adapters: what adapters are compared with. Adapters are twice as wide as these narrow layers
(`ratio`). Worlds and sizes are those of i2v_sprites.py. smoke=1: two steps.
"""

from ml_collections import ConfigDict

from configs import aid, clip_sprites, defaults, i2v_sprites, vae_sprites

BUDGETS = {
    "quick": dict(i2v_sprites.BUDGETS["quick"], steps=1000, peak=8e-3),
    "long": dict(i2v_sprites.BUDGETS["long"], steps=2000, peak=3e-3),
}
NOISE = dict(i2v_sprites.NOISE, mean=2.0)  # more of it than for the base: what happens in a clip is decided there
WIDTH = clip_sprites.BUDGETS["quick"]["projection"]  # of the image's token, beside which the multimodal condition stands
STATES = 4  # texts that a sprite's clip has


def get_config(arg=None):
    args = defaults.parse_arg(
        arg, budget="quick", smoke=False, seed=0, clips=0, tune="adapters", given=1, states="", ratio=2.0, queries=8, learned="all", grey=False, mask=False,
        **aid.ARMS,
    )  # fmt: skip
    aid.checked(args)
    defaults.choose(dict(adapters=1, full=1), args["tune"], "tune")
    defaults.choose({"": 1, "instruction": 1}, args["states"], "states")  # sprites know their own
    defaults.within(args, given=(1, 7), ratio=(0.001, 4), queries=(1, 1000))
    b, smoke, full = defaults.choose(BUDGETS, args["budget"], "budget"), args["smoke"], args["tune"] == "full"
    if full:
        args |= dict(spatial=False, short=False, long=False, mask=False)
    config = ConfigDict(dict(seed=args["seed"], steps=2 if smoke else b["steps"], batch=4 if smoke else b["batch"]))
    vae = dict(run="runs/sprites/vae", weights="ema", **defaults.made_by("vae_sprites", args))
    tower = lambda part: dict(run="runs/sprites/clip", part=f"clip.{part}", weights="ema", **defaults.made_by("clip_sprites", args))
    width = 16 if smoke else WIDTH
    sizes = dict(width=width, heads=4, queries=4 if smoke else args["queries"], states=STATES, branches=aid.BRANCHES[args["branches"]])
    own = i2v_sprites.network(b, smoke)
    changed = aid.layers(args, own, head_dim=8)
    config.objective = dict(
        target="magvid.objectives.denoise:Denoise",
        network=own | changed if full else dict(run="runs/sprites/i2v", weights="ema", fields=changed, **defaults.made_by("i2v_sprites", args)),
        vae=vae,
        conditioners=aid.conditioners(
            args, vae, tower("vision"), tower("text"), i2v_sprites.resized(), b["frames"], {}, sizes, dict(aug=0.0, tell=False)
        ),
        schedule=i2v_sprites.EDM,
        prediction=i2v_sprites.V,
        times=NOISE,
        **(aid.trained_parts(args) | (dict(adapters=None, trained=("network", "dqformer")) if full else {})),
        sampling=i2v_sprites.sampling(b, smoke, aid.guidance(args, 1.5, 2.0)),
    )
    size = dict(frames=b["frames"], height=vae_sprites.SIZE, width=vae_sprites.SIZE)
    clip = dict(target="magvid.data.sprites:Sprites", world=b["world"], **size)
    keys = ("video", "label", "instruction", "states", "colour", "texture")
    words = aid.texts(args, clip_sprites.TOKENIZER, "instruction")
    counted = [dict(target="magvid.data.pipeline:LearnAfter", given=args["given"])] if args["learned"] == "after" else []
    config.data = dict(
        train=dict(source=dict(clip, split="train", keys=keys[:4]), transforms=[*words, *counted], workers=0),
        eval=dict(source=dict(clip, split="validation", keys=keys), transforms=words, limit=128),
    )
    if args["clips"]:
        config.data.train.source = defaults.views(config.data.train.source, clips=args["clips"])
    config.metrics = [dict(target="magvid.metrics.sprites:SpriteJudge", world=b["world"])]
    optim = defaults.muon(b["peak"], smoke)
    config.optim = {group: optim for group in config.objective.trained}
    if full:
        config.init = [dict(run="runs/sprites/i2v", groups=["network"], weights="ema")]
    config.ema = 0.99
    return defaults.paced(config, smoke)
