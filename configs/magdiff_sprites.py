"""MagDiff on the embedded sprites: pictures of a sprite that was never seen so, and a text that says what it does -> a video of it; and edits.

    magvid train --config=configs/magdiff_sprites.py:base=1 --workdir=runs/sprites/entities-base
    magvid train --config=configs/magdiff_sprites.py:budget=quick --workdir=runs/sprites/magdiff
    magvid compose --entity=square.png --prompt="moves left" --run=runs/sprites/magdiff --out=a.mp4    # a picture of the whole frame

Training leaves out a sixth of the combinations of shape, colour and texture; the clips to evaluate on have these alone (worlds "entities-seen" and
"-unseen" of magvid.data.sprite_world; unseen=0: as seen in training). Three of four texts say the motion alone, so that who moves is told by the pictures,
subjects of any frames in the middle of their pictures, from one to all of them; all do where a model is evaluated, which is shown one picture. centre=0: the first
frames' subjects where they are; a network then learns to copy what it is told in place and trusts it where nothing is: told one picture,
47 % of 200 test clips were right, and of 200 validation clips 62 % with centre=1 after the same training (loss and guidance as they were then).
edits=same evaluates on clips of which the sprite is to be made anew in its place, as the whole caption says, edits=colour in another colour.

Of two batches (`pictures`; 0: none) one is of single frames, each of a clip of its own, as many as all frames of a batch of clips: they say more of
looks for the same work, and their subjects are not where the pictures of them have them.

base=1 is what stands for Stable Diffusion here: the same layers at a small size, from nothing, told texts alone, whole captions or the motion. All
else begins with it, in runs/sprites/entities-base (begin=0: from nothing), as MagDiff does with Stable Diffusion; other than that, it moves. Base and arms
are on the latents of an autoencoder and told by CLIP's towers, which saw the same looks: vae_sprites.py:world=entities-seen,latent=8,steps=1500,kl=1e-5,scaling=0.72 and
clip_sprites.py:world=entities-moves,motion=1,steps=1500,patch=4, taken from runs/sprites/entities-vae and runs/sprites/entities-clip.

The paper's ablations are arguments, see magdiff.py: segmented=0, apa=joint|none, rep=48+40+32|32|none (pixels), refs, least; shown=N: of so many
pictures at evaluation. prediction=eps: with the plain schedule. smoke=1: two steps.
"""

from ml_collections import ConfigDict

from configs import clip_sprites, defaults, magdiff, vae_sprites

BUDGETS = {
    "quick": dict(channels=(32, 64, 96), batch=8, base=7000, steps=1500, peak=4e-3, sampling=16),
    "long": dict(channels=(48, 96, 144), batch=8, base=16000, steps=4000, peak=3e-3, sampling=24),
}
WORLD = "entities-seen"
FRAMES = 8
DRAWN = 48  # pixels of a side
GROWN = 2  # pixels around a sprite that are edited with it: its edge is half of its colour
LATENT = 8  # numbers per latent: with 4, a third of the textures is lost
# arguments of vae_sprites.py and clip_sprites.py. With vae_sprites' own kl, half of the latents' variance was noise and three of eight channels were empty
VAE = f"world={WORLD},latent={LATENT},steps=1500,kl=1e-5,scaling=0.72"
# The same looks doing all that sprites can: of those that move left, right, up or down, grow or shrink alone CLIP learned no more than along which axis
# they move, in 2600 steps (its loss stood at that floor, and "left" and "right" had a cosine of 1.00; of all actions, after 1500 steps, 0.83).
# Of tokens of 8 pixels a linear probe read 47 % of the textures of unseen combinations (a third is chance), of 4 pixels 85 %.
CLIP = "world=entities-moves,motion=1,steps=1500,patch=4"
NEW = "_ip/|_scale$"
RUNS = {name: f"runs/sprites/entities-{name}" for name in ("vae", "clip", "base")}


def network(b, args):
    channels = (8,) if args["smoke"] else b["channels"]
    sizes = dict(channels=channels, layers=1, attention_levels=[True] * len(channels), heads=[max(c // 32, 1) for c in channels], groups=8, out_channels=LATENT)
    spec = magdiff.layers(args)
    # the frame's number stays in what the layers between frames pass on: from nothing, nothing else tells where in its motion a sprite is
    spec["attention"] = dict(spec["attention"], position_stays=True)
    spec["res"] = dict(spec["res"], dropout=[0.0] * (1 if args["smoke"] else 4))  # no clip is seen twice
    return dict(target="magvid.models.unet:UNet", **spec | sizes)


def get_config(arg=None):
    args = defaults.parse_arg(
        arg, budget="quick", smoke=False, seed=0, clips=0, prediction="v", base=False, begin=True, unseen=True, edits="", shown=1, centre=True, pictures=2,
        **(magdiff.ARMS | dict(rep="48+40+32", editing=0.25)),
    )  # fmt: skip
    args = magdiff.checked(args | dict(release=False))
    defaults.choose({"": 0, "same": 1, "colour": 1}, args["edits"], "edits")
    if args["base"]:
        if args["edits"] or args["shown"] > 1:
            raise ValueError("base=1 is told no pictures: leave out edits and shown")
        args |= dict(apa="none", rep="none", begin=False)
    b, smoke = defaults.choose(BUDGETS, args["budget"], "budget"), args["smoke"]
    config = ConfigDict(dict(seed=args["seed"], steps=2 if smoke else b["base" if args["base"] else "steps"], batch=4 if smoke else b["batch"]))
    tower = lambda part: dict(run=RUNS["clip"], part=f"clip.{part}", weights="ema", **defaults.made_by("clip_sprites", args, CLIP))
    vae = dict(run=RUNS["vae"], weights="ema", **defaults.made_by("vae_sprites", args, VAE))
    size = [vae_sprites.SIZE] * 2
    width = 16 if smoke else clip_sprites.BUDGETS["quick"]["projection"]
    resampler = dict(target="magvid.adapters.magdiff:Resampler", width=width, queries=4, depth=1 if smoke else 2, heads=4, head_dim=width // 4, out=width)
    resized = dict(factory="magvid.models.clip:shortest_side", size=size)
    config.objective = dict(
        target="magvid.objectives.denoise:Denoise",
        network=network(b, args),
        vae=vae,
        conditioners=magdiff.conditioners(args, vae, tower("vision"), tower("text"), resized, resampler),
        **magdiff.noise(args),
        drop=[[["text"], 0.1]] if args["base"] else magdiff.dropped(args),
        trained=magdiff.trained(args),
        tasks=dict(T2V=()) if args["base"] else dict(S2V=()),
        sampling=dict(
            target="magvid.objectives.denoise:Sampling",
            sampler=dict(target="magvid.diffusion.samplers:DDIM"),
            steps=2 if smoke else b["sampling"],
            guidance=[[["text"], 3.0]] if args["base"] else magdiff.guidance(args, 3.0, 3.0),
        ),
        carried=2,
    )
    if not args["base"]:  # else where they are and what is behind them, which nothing tells, is most of the loss; texture is decided where there is less noise
        config.objective.weight = dict(factory="magvid.diffusion.predictions:min_snr")
    config.data = data(args, size, config.batch)
    config.metrics = [dict(target="magvid.metrics.sprites:SpriteJudge", world="entities")]
    config.optim = {group: defaults.muon(b["peak"], smoke) for group in magdiff.trained(args)}
    config.ema = 0.995
    if args["apa"] == "epaf":  # how much counts of what text and pictures say are two numbers a layer, which at the matrices' rate hardly leave where they begin
        rate = dict(config.optim.network.rules[0][1], peak=10 * b["peak"])
        config.optim.network.rules = [["_scale$", rate], *config.optim.network.rules]
    if args["begin"] and not smoke:
        begins = dict(map="magvid.adapters.magdiff:begun", skip=[NEW])
        config.init = [dict(run=RUNS["base"], groups=["network"], weights="ema", **begins)]
    return defaults.paced(config, smoke)


def data(args, size, batch):
    """Clips, drawn larger than they are learned, in which size the pictures of their sprites are told where there is a pyramid; and their texts."""
    clip = dict(target="magvid.data.sprites:Sprites", frames=FRAMES, height=DRAWN, width=DRAWN)
    keys = ("video", "label", "caption", "motion", "masks")
    text = lambda *keys: [dict(target="magvid.data.text:OneOf", keys=keys), dict(clip_sprites.TOKENIZER, key="text")]

    def pictures(args, *share, still=False, **options):
        """The same clips, whatever is told of them; `still`: one frame of each, shown a subject that is elsewhere."""
        smaller = [dict(target="magvid.data.pipeline:Resize", height=size[0], width=size[1])] if len(magdiff.levels(args)) < 2 else []
        if args["base"]:
            return [*smaller, dict(target="magvid.data.pipeline:Frames", indices=[0])] if still else smaller
        options |= dict(centre=args["centre"], first=not (args["centre"] or still), grow=GROWN)
        return [*smaller, magdiff.entities(args, size, *share, **(dict(still=True) if still else {}), **options)]

    told, words = pictures(args), text("caption", *["motion"] * (1 if args["base"] else 3))
    train, after = dict(clip, world=WORLD, split="train", keys=keys), [*told, *words]
    joint = {}
    if args["pictures"]:
        still = pictures(args | dict(refs=1, least=1), still=True)
        joint["pictures"] = dict(source=train, transforms=[*still, *words], workers=0, batch=FRAMES * batch, every=args["pictures"])
    if args["clips"]:  # what changes a video belongs to its views
        train, after = defaults.views(train, clips=args["clips"], transforms=told), words
    held = dict(clip, world="entities-unseen" if args["unseen"] else WORLD, split="validation", keys=(*keys, "colour", "texture"))
    shown, edits = args["shown"], bool(args["edits"])
    asked = pictures(args | dict(refs=shown, least=shown), float(edits), stays=edits)
    if args["edits"] == "colour":
        asked.append(dict(target="magvid.data.sprites:Recolour", world=WORLD))
    return joint | dict(
        train=dict(source=train, transforms=after, workers=0),
        eval=dict(source=held, transforms=[*asked, *text("caption" if edits or args["base"] else "motion")], limit=128),
    )
