"""MAVIN on the embedded sprites: the transition between two actions, from what comes before and after it.

    magvid train --config=configs/mavin_sprites.py:budget=quick --workdir=runs/sprites/mavin

Clips of two actions, one after the other, of which the model is given both ends: ModelScope's layers at a small size, from nothing, on the
latents of vae_sprites.py, told the caption and the boundary frames by the towers of clip_sprites.py; all three are frozen and taken from
runs/sprites. part=action: the model of single actions, which goes on from a first frame. Gaps are half as long as the paper's, as the clips are.
The paper's ablations are arguments, see mavin.py: noising=bert, variable=0, bfg=0, gfm=none|official3d|freeinit3d, f0=0.6, decay=0.1.
prediction=eps: of the noise, as ModelScope's weights predict it; v learns faster from nothing. budget=quick: the "small" world;
budget=long: the full world. smoke=1: two steps.
"""

from ml_collections import ConfigDict

from configs import clip_sprites, defaults, mavin, vae_sprites

BUDGETS = {
    "quick": dict(world="small", channels=(32, 64), batch=4, steps=800, peak=4e-3, sampling=10),
    "long": dict(world="full", channels=(48, 96), batch=8, steps=3000, peak=3e-3, sampling=16),
}
PREDICTIONS = {name.lower(): dict(target=f"magvid.diffusion.predictions:{name}") for name in ("V", "Eps")}
FRAMES = 16
GAP = dict(start=[3, 7], end=[9, 13], sample=[4, 12])
KEYS = ("video", "label", "caption", "shape", "colour", "texture", "actions", "track")


def network(b, args):
    channels = (8,) if args["smoke"] else b["channels"]
    tokens = mavin.told(args)
    return dict(
        target="magvid.models.unet:UNet",
        channels=channels,
        layers=1,
        attention_levels=(False, True)[-len(channels) :],
        heads=[max(c // 32, 1) for c in channels],
        res=dict(factory="magvid.models.temporal:StackRes", dropout=[0.0] * (1 if args["smoke"] else 4)),  # no clip is seen twice
        attention=dict(factory="magvid.models.temporal:PostTransformer", tokens=tokens),
        stem=dict(factory="magvid.models.temporal:FrameTransformer", heads=1, head_dim=channels[0]),
        time_embedding=dict(factory="magvid.models.unet:TimeEmbedding", before="length"),
        groups=8,
    )


def get_config(arg=None):
    args = defaults.parse_arg(arg, budget="quick", smoke=False, seed=0, part="transition", prediction="v", **mavin.ARMS)
    transition = defaults.choose(dict(transition=True, action=False), args["part"], "part")
    b, smoke = defaults.choose(BUDGETS, args["budget"], "budget"), args["smoke"]
    config = ConfigDict(dict(seed=args["seed"], steps=2 if smoke else b["steps"], batch=4 if smoke else b["batch"]))
    tower = lambda part: dict(run="runs/sprites/clip", part=f"clip.{part}", weights="ema", **defaults.made_by("clip_sprites", args))
    resized = dict(factory="magvid.models.clip:shortest_side", size=[vae_sprites.SIZE] * 2)
    start, end = GAP["sample"] if transition else (1, FRAMES)
    ends = ("before", "after") if transition else ("before",)
    config.objective = dict(
        target="magvid.objectives.denoise:Denoise",
        network=network(b, args),
        vae=dict(run="runs/sprites/vae", weights="ema", **defaults.made_by("vae_sprites", args)),
        conditioners=mavin.conditioners(args, tower("text"), tower("vision"), resized, ends, length=end - start),
        noising=mavin.noising(args, **GAP) if transition else mavin.FIRST,
        schedule=dict(target="magvid.diffusion.schedules:Discrete", spacing=dict(factory="magvid.diffusion.schedules:linspace", zero=False)),
        prediction=defaults.choose(PREDICTIONS, args["prediction"], "prediction"),
        drop=[[mavin.told(args), 0.1]],
        tasks=dict(TVI=()) if transition else dict(TI2V=()),
        sampling=dict(
            target="magvid.objectives.denoise:Sampling",
            sampler=dict(target="magvid.diffusion.samplers:DPMSolverPP2M"),
            steps=2 if smoke else b["sampling"],
            guidance=[],
            mixer=mavin.mixer(args) if transition else mavin.action_mixer(args),
        ),
    )
    gaps = [dict(target="magvid.data.pipeline:Gap", start=GAP["start"], end=GAP["end"])] if transition else []
    size = dict(frames=FRAMES, height=vae_sprites.SIZE, width=vae_sprites.SIZE)
    clip = dict(target="magvid.data.sprites:Sprites", world=b["world"], sequence=float(transition), **size)
    config.data = dict(
        train=dict(source=dict(clip, split="train", keys=KEYS[:3]), transforms=[clip_sprites.TOKENIZER], workers=0),
        eval=dict(source=dict(clip, split="validation", keys=KEYS), transforms=[clip_sprites.TOKENIZER, *gaps], limit=64),
    )
    config.metrics = [
        dict(target=f"magvid.metrics.{'sprite_transitions:SpriteTransition' if transition else 'sprites:SpriteJudge'}", world=b["world"]),
        dict(target="magvid.metrics.frames:GapFrames"),
        dict(target="magvid.metrics.clip:ClipSmoothness", vision=tower("vision")),
    ]
    config.optim = dict(network=defaults.muon(b["peak"], smoke))
    config.ema = 0.99
    return defaults.paced(config, smoke)
