"""MAVIN (Zhang et al., 2024, arXiv 2405.18003): the transition between two action clips, and clips of actions.

    magvid train --config=configs/mavin_horse.py --workdir=runs/mavin-horse
    magvid train --config=configs/mavin_horse.py:part=action --workdir=runs/mavin-horse-action
    magvid connect a.mp4 b.mp4 --run=runs/mavin-horse --out=ab.mp4

This module is what the configs of all data share. ModelScope's converted weights are expected in weights/modelscope/{unet,vae,text} (`base`), CLIP
ViT-L/14 in weights/mavin/vision; docs/diffusion.md says how. tune=subset (default) trains the released subset of 496 million parameters;
full and lora as elsewhere; tune= (nothing) samples with a converted MAVIN U-Net in weights/mavin/unet (`weights`).

The paper's settings are the defaults, with the choices that docs/mavin.md names where it is silent; its ablations are arguments: noising=bert (BERT-style masking), variable=0 (gaps of 12 frames only), bfg=0 (no
boundary frame guidance), gfm=none, official3d or freeinit3d (instead of frame2d: the Gaussian filter mixer; f0=0.4,decay=0.05 are the
released app's). release=1: what the released code does, which is bfg=0, gfm=official3d, and nothing dropped in training, so that the null of
its guidance is never trained. variant=rope, centred or sparse_causal: its optional code paths. `drop`: how often text and boundary frames
are hidden together. motion=FILE: of tools/measure_motion.py, to leave out windows with a cut; motion=0: none are left out; least_flow=2: with
variable=0, also those whose gap moves less (pixels per frame). tune=lora begins with a MAVIN U-Net: `weights`, or a run by --config.objective.network.run. smoke=1: two
steps of a tiny U-Net on sprites; the other weights are those of `base` and `weights`. i3d=FILE measures FVD and KVD as well, lpips=FILE LPIPS by SqueezeNet, of whole clips and of gaps (docs/metrics.md).
"""

from ml_collections import ConfigDict

from configs import defaults, latent, unets

ARMS = dict(noising="consecutive", variable=True, bfg=True, gfm="frame2d", f0=0.6, decay=0.1)
GAP = dict(start=[5, 15], end=[17, 27], sample=[10, 22])  # of 32 frames
TINY_GAP = dict(start=[2, 3], end=[5, 6], sample=[2, 5])  # of 8


def noising(args, start, end, sample):
    """`start` and `end` of the gap: ranges to train on; `sample`: the usual one."""
    kind = defaults.choose(dict(consecutive="Consecutive", bert="Scattered"), args["noising"], "noising")
    target = dict(target=f"magvid.diffusion.mavin:{kind}", sample=sample)
    if kind == "Scattered":
        return target
    ranges = dict(start=start, end=end) if args["variable"] else dict(start=[sample[0]] * 2, end=[sample[1]] * 2)
    return target | ranges | dict(per_batch=False)


def mixer(args, level=999):
    """The Gaussian filter mixer."""
    f0, decay = args["f0"], args["decay"]
    forms = {
        "frame2d": dict(target="magvid.diffusion.mavin:FrameMixer", cutoff=f0, decay=decay, level=level),
        "official3d": dict(target="magvid.diffusion.mavin:ReleasedMixer", cutoff=f0, decay=decay, level=level),
        "freeinit3d": dict(target="magvid.diffusion.mavin:FreeInit", space=f0, time=f0, level=level),
        "none": None,
    }
    return defaults.choose(forms, args["gfm"], "gfm")


FIRST = dict(target="magvid.diffusion.mavin:First")  # of the action model: one frame is given


def action_mixer(args):
    """FreeInit's filter, as released for the action model."""
    return None if args["gfm"] == "none" else dict(target="magvid.diffusion.mavin:FreeInit", space=0.25, time=0.25, level=850)


def conditioners(args, text, vision, prepare, ends=("before", "after"), **scalars):
    """Text, boundary frames, and numbers about the gap (`scalars`: where nothing else is said)."""
    told = [dict(target="magvid.models.conditioners:TextTokens", text=text)]
    if args["bfg"]:
        told.append(dict(target="magvid.models.conditioners:BoundaryTokens", vision=vision, prepare=prepare, ends=ends))
    return [*told, dict(target="magvid.models.conditioners:Scalars", values=scalars)]


def told(args):
    """The names of what is told in words and pictures; they are dropped together, so that guidance has a null to lead away from."""
    return ["text", "image"] if args["bfg"] else ["text"]


def network(args, **tiny):
    """The U-Net that begins as ModelScope's: whatever the gap's length at first."""
    changes = unets.MAVIN_VARIANTS[args["variant"]] if args["variant"] else {}
    spec = unets.mavin | changes
    spec["attention"] = dict(spec["attention"], tokens=tuple(told(args)))
    if not args["release"]:
        spec["time_embedding"] = dict(spec["time_embedding"], before_zero=True)
    return dict(target="magvid.models.unet:UNet", **spec) | (tiny or dict(dtype=args["dtype"], remat=True))


def converted_network(args):
    """The U-Net of converted MAVIN weights, with what `args` changes of its layers."""
    spec = network(args)
    changed = {name: spec[name] for name in ("attention", "stem") if spec[name] != unets.mavin[name]}
    reference = latent.network(args, "mavin")
    return reference | dict(fields=reference["fields"] | changed)


def folder(split, t, h, w):
    """Any folder of clips, a sub-folder for each action, at the released frame rate and shape."""
    size = dict(frames=t, height=h, width=w, fps=8, most_stride=2, keep_aspect=False)
    return dict(target="magvid.data.folder:VideoFolder", split="validation" if split == "test" else split, **size)


def published(arg, source, text, actions, data):
    """The config of one data set. `source`(split, size of the clips) makes its clips out of the folder `data`; `text` is told of all of
    them; `actions`: what differs for the model of single actions: {size, peak, steps}.
    """
    args = parse(arg, data)
    transition = args["part"] == "transition"
    settings = dict(size=256, peak=5e-6, steps=40000) if transition else actions
    usual = (8, 32, 48) if args["smoke"] else (32 if transition else 16, settings["size"], settings["size"])
    clip = [(args["smoke"] and value) or args[name] or value for name, value in zip(("frames", "height", "width"), usual)]
    config = ConfigDict(dict(seed=64, objective=objective(args, clip), data=dataset(args, clip, source, text if transition else "{action}")))
    config.metrics = [
        dict(target="magvid.metrics.frames:GapFrames"),
        dict(target="magvid.metrics.clip:ClipSmoothness", vision=latent.converted(f"{args['weights']}/vision", "float32")),
        *defaults.measured(args, backbone="squeeze"),
    ]
    config = latent.tune(config, args, ways=("", "subset", "full", "lora"), subset=unets.MAVIN_TRAINED)
    return config if args["smoke"] or not args["tune"] else trained_as_published(config, args, settings)


def parse(arg, data):
    """The arguments, checked, with what release=1 and smoke=1 say."""
    args = latent.parse(
        arg, weights="weights/mavin", base="weights/modelscope", frames=0, height=0, width=0, part="transition", variant="", drop=0.1,
        release=False, motion="", least_flow=0.0, folder=False, **ARMS, **defaults.MEASURES,
    )  # fmt: skip
    explicit = dict(item.partition("=")[::2] for item in filter(None, (arg or "").split(",")))
    args |= {} if "tune" in explicit else dict(tune="subset")
    args |= {} if "data" in explicit else dict(data=data)
    defaults.choose({"": 1, **unets.MAVIN_VARIANTS}, args["variant"], "variant")
    defaults.choose(dict(transition=1, action=1), args["part"], "part")
    defaults.within(args, drop=(0, 1), f0=(0, 10), decay=(0, 10), least_flow=(0, 1000))
    if args["least_flow"] and args["variable"] and args["part"] == "transition":
        raise ValueError("least_flow is measured over a gap of one place: give variable=0 as well")
    return args | (dict(bfg=False, gfm="official3d", drop=0.0) if args["release"] else {})


def gap_of(args):
    return TINY_GAP if args["smoke"] else GAP


def objective(args, clip):
    """Of clips (t h w): the network, what it is told, how it is trained and sampled from."""
    transition, smoke, gap = args["part"] == "transition", args["smoke"], gap_of(args)
    start, end = gap["sample"] if transition else (1, clip[0])
    scalars = dict(length=end - start) | (dict(start=start, end=end) if args["variant"] in ("centred", "sparse_causal") else {})
    tower = lambda folder, part: latent.converted(f"{args[folder]}/{part}", args["dtype"])
    resized = dict(factory="magvid.models.clip:shortest_side")
    ends = ("before", "after") if transition else ("before",)
    hidden = ["text"] if args["release"] else told(args)
    return dict(
        target="magvid.objectives.denoise:Denoise",
        network=network(args, **(latent.TINY if smoke else {})) if args["tune"] not in ("", "lora") else converted_network(args),
        vae=tower("base", "vae"),
        conditioners=conditioners(args, tower("base", "text"), tower("weights", "vision"), resized, ends, **scalars),
        noising=noising(args, **gap) if transition else FIRST,
        schedule=dict(target="magvid.diffusion.schedules:Discrete", spacing=dict(factory="magvid.diffusion.schedules:linspace", zero=False)),
        drop=[[hidden, args["drop"]]] if args["drop"] else [],
        tasks=dict(TVI=()) if transition else dict(TI2V=()),
        sampling=dict(
            target="magvid.objectives.denoise:Sampling",
            sampler=dict(target="magvid.diffusion.samplers:DPMSolverPP2M"),
            steps=2 if smoke else 50,
            guidance=[[hidden, 9.0]],
            mixer=mixer(args) if transition else action_mixer(args),
        ),
        clip=clip,
    )


def dataset(args, clip, source, template):
    """Clips with their texts, without windows that have a cut, and in training flipped at random."""

    def clips(split):
        if args["smoke"]:
            return latent.sprites(*clip)
        made = (folder if args["folder"] else source)(split, *clip) | dict(path=args["data"])
        if args["motion"] != "0":
            gap = gap_of(args)["sample"] if args["part"] == "transition" else None
            flow = dict(least_flow=args["least_flow"], gap=gap) if args["least_flow"] else {}
            made["motion"] = dict(target="magvid.data.motion:Motion", file=args["motion"] or f"{args['data']}/motion.json", **flow)
        return made

    words = [] if args["smoke"] else [dict(target="magvid.data.text:Template", template=template)]
    texts = [*words, latent.tokenizer(dict(args, weights=args["base"]))]
    flip = [dict(target="magvid.data.pipeline:Augment", flip=True)]
    train = latent.viewed(args, clips("train"), args["views"], flip) if args["views"] else clips("train")
    return dict(
        train=dict(source=train, transforms=texts if args["views"] else [*flip, *texts], workers=0),
        eval=dict(source=clips("test"), transforms=texts, limit=64),
    )


def trained_as_published(config, args, settings):
    """Steps and rate of the released code, from ModelScope's weights."""
    config.steps, config.batch, config.microbatch = settings["steps"], 1, 0
    if args["tune"] != "lora":
        config.optim.network.rules[0][1].update(peak=settings["peak"], warmup=0, decay="constant")
        config.ema = 0.0
        config.init = [dict(run=f"{args['base']}/unet", groups=["network"], weights="params", skip=["cond_proj"])]
    return config
