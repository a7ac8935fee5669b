"""AID (Xing et al., ICCV 2025, arXiv 2406.06465): a first frame and an instruction -> a video, by adapters on a frozen Stable Video Diffusion.

    magvid train --config=configs/aid_bridge.py --workdir=runs/aid-bridge
    magvid predict kitchen.jpg --run=runs/aid-bridge --instruction="put the pot on the stove" --states=states.json --out=pot.mp4

This module is what the configs of all data share. Converted weights of SVD are expected in weights/svd/{unet,vae,vision} (`base`), Stable
Diffusion 2.1's text tower in weights/sd21/text (`text`); docs/diffusion.md says how. Trained are the adapters, the DQFormer and the
differences of the spatial cross-attention (mcond=replace: it reads SVD's image token and then the multimodal condition; mcond=decoupled:
keys and values of their own beside it, all of SVD stays). The run holds these alone.

Our choices where the paper is silent are the defaults (docs/aid.md names them). Its ablations are arguments: branches=upper or lower,
mcond=none (no multimodal condition), states=instruction (no predictions: the instruction repeated), and spatial=0, short=0, long=0,
each of which leaves an adapter out. states=FILE: of tools/predict_states.py (default: states.json in the data's folder); count: how many texts it has for each video. given: how
many frames are given; learned=after: these do not count in the loss; grey=0: the last of them stands still in place of the grey frames that the paper's
figure shows, as SVD was trained; mask=1: a channel that says which they are. ratio: size of adapters; dqformer, queries, depth: of the DQFormer, whose width
must be that of the image's token. i3d=FILE measures FVD and KVD, lpips=FILE LPIPS by AlexNet (docs/metrics.md). smoke=1: two steps on sprites; all weights are those of `base` and `text`.
"""

from ml_collections import ConfigDict

from configs import clip_sprites, defaults, latent, unets

ARMS = dict(mcond="replace", branches="both", spatial=True, short=True, long=True)
SITES = {  # argument: (layer, site, adapter)
    "spatial": ("attention", "beside_spatial", "SpatialAdapter"),
    "short": ("res", "after_res", "ShortTemporalAdapter"),
    "long": ("attention", "beside_temporal", "LongTemporalAdapter"),
}
BRANCHES = dict(both=("upper", "lower"), upper=("upper",), lower=("lower",))
NEW = "(beside_spatial|beside_temporal|after_res)/|_added(/|$)|added_scale$"  # parameters that SVD does not have
CROSS = r"(^|/)transformer_blocks_\d+/attn2/"  # of the spatial transformers


def layers(args, base, dtype=None, head_dim=16):
    """{"attention", "res"} of the base's layers with adapters, reading the multimodal condition after the image's token."""
    changed = {name: dict(base[name]) for name in ("attention", "res")}
    for argument, (layer, site, name) in SITES.items():
        if args[argument]:
            factory = dict(factory=f"magvid.adapters.aid:{name}", ratio=args["ratio"], **({} if dtype is None else dict(dtype=dtype)))
            factory |= dict(head_dim=head_dim) if argument == "long" else {}
            changed[layer].setdefault("adapters", {})[site] = factory
    own = tuple(base["attention"]["tokens"])
    changed["attention"] |= dict(frame_tokens=own)
    if args["mcond"] == "replace":
        changed["attention"] |= dict(tokens=(*own, "mcondition"))
    elif args["mcond"] == "decoupled":
        reads = dict(factory="magvid.adapters.aid:Decoupled", tokens=own, added=("mcondition",))
        changed["attention"] |= dict(cross_attention=reads)
    return changed


def grafts(args):
    """What of the network is trained; None where that is nothing."""
    replaced = args["mcond"] == "replace"
    new = NEW if args["mcond"] == "decoupled" or any(args[name] for name in SITES) else ""
    widened = dict(widened="^conv_in/kernel", more=1) if args["mask"] else {}
    return dict(target="magvid.grafts:Grafts", new=new, changed=CROSS if replaced else "", scale=1.0, **widened)


def conditioners(args, vae, vision, text, prepare, frames, scalars, dqformer, aug):
    """The image's token, the given frames' latents, SVD's numbers, and the multimodal condition."""
    seen = dict(vision=vision, prepare=prepare)
    told = [
        dict(target="magvid.models.conditioners:ImageTokens", **seen),
        dict(target="magvid.models.conditioners:GivenLatents", vae=vae, frames=frames, given=args["given"], grey=args["grey"], mask=args["mask"], **aug),
        *([dict(target="magvid.models.conditioners:Scalars", values=scalars)] if scalars else []),
    ]
    if args["mcond"] != "none":
        reads = dict(text=text, dqformer=dict(target="magvid.adapters.dqformer:DQFormer", frames=frames, **dqformer), **seen)
        repeat = dqformer["states"] if args["states"] == "instruction" else 0
        told.append(dict(target="magvid.adapters.dqformer:MCondition", given=args["given"], repeat=repeat, **reads))
    return told


def trained_parts(args):
    """Fields of the objective: what is trained, and what is hidden for that. Without a multimodal condition there is no text to hide."""
    if args["mcond"] == "none":
        return dict(adapters=grafts(args), trained=("adapters",), drop=[[["image"], 0.1]], tasks=dict(I2V=()))
    drop = [[["text"], 0.05], [["image"], 0.05], [["text", "image"], 0.05]]
    return dict(adapters=grafts(args), trained=("adapters", "dqformer"), drop=drop, tasks=dict(TI2V=()))


def guidance(args, image, text):
    """The paper's dual guidance."""
    return [[["text", "image"], image], [["text"], text]] if args["mcond"] != "none" else [[["image"], image]]


def checked(args):
    defaults.choose({name: 1 for name in ("replace", "decoupled", "none")}, args["mcond"], "mcond")
    defaults.choose(BRANCHES, args["branches"], "branches")
    defaults.choose(dict(all=1, after=1), args["learned"], "learned")
    if args["mcond"] == "none" and not any(args[name] for name in SITES):
        raise ValueError("mcond=none without spatial, short and long leaves nothing to train")
    return args


def texts(args, tokenizer, key):
    """Transforms: the instruction's ids, and those of the predicted states where they are told."""
    told = [dict(tokenizer, key=key)]
    if args["mcond"] != "none" and args["states"] != "instruction":
        told.append(dict(target="magvid.data.text:Also", tokenizer=dict(tokenizer, key=key)))
    return told


def published(arg, source, given, frames, steps, data, key="text"):
    """The config of one data set. `source`(split "train" or "test", t, h, w) makes its clips out of the folder `data`; `key`: the entry of a
    record that is the instruction. The others are defaults.
    """
    args = parse(arg, given, data)
    clip = [args["frames"] or frames, args["height"], args["width"]]
    config = ConfigDict(dict(seed=0, objective=objective(args, clip), data=dataset(args, clip, source, key)))
    config.steps, config.batch, config.microbatch = (2, 2, 1) if args["smoke"] else (steps, 32, 1)
    config.optim = optimisers(args, 1 if args["smoke"] else 1000)
    config.ema = 0.9999
    config.metrics = defaults.measured(args)
    config.sharding = [[".*", "fsdp"]]
    config.compiler_options = dict(tpu=defaults.NO_SPACE_TO_BATCH)
    config.log_every = 1 if args["smoke"] else 20
    config.save_every = 1000
    config.keep = 2
    return config


def parse(arg, given, data):
    """The arguments, checked."""
    args = latent.parse(
        arg, base="weights/svd", text="weights/sd21/text", frames=0, height=256, width=256, given=given, fps=7, motion=127, states="", count=4, ratio=0.25,
        dqformer=1024, queries=77, depth=1, learned="all", grey=True, mask=False, chunk=0, **ARMS, **defaults.MEASURES,
    )  # fmt: skip
    explicit = dict(item.partition("=")[::2] for item in filter(None, (arg or "").split(",")))
    args |= {} if "data" in explicit else dict(data=data)
    defaults.within(args, motion=(1, 255), given=(1, 100), ratio=(0.001, 4), count=(1, 100), dqformer=(8, 10**5))
    return checked(args)


def objective(args, clip):
    """SVD's, with AID's condition, guidance and adapters. Clips (t h w)."""
    smoke = args["smoke"]
    tower = lambda folder: latent.converted(folder, args["dtype"])
    vae, vision = (tower(f"{args['base']}/{part}") for part in ("vae", "vision"))
    kind = {} if args["dtype"] == "float32" else dict(dtype=args["dtype"])
    sizes = dict(width=args["dqformer"], heads=max(args["dqformer"] // 64, 1), queries=4 if smoke else args["queries"])
    sizes |= dict(depth=args["depth"], states=args["count"], branches=BRANCHES[args["branches"]], **kind)
    scalars = dict(fps=args["fps"] - 1, motion=args["motion"])
    prepare = dict(factory="magvid.models.clip:prepare")
    chunked = dict(in_parts=dict(factory="magvid.models.vae:in_chunks", frames=args["chunk"])) if args["chunk"] else {}
    return dict(
        target="magvid.objectives.denoise:Denoise",
        network=latent.converted(f"{args['base']}/unet", args["dtype"], remat=True, **layers(args, unets.svd, **kind)),
        vae=vae,
        conditioners=conditioners(args, vae, vision, tower(args["text"]), prepare, clip[0], scalars, sizes, dict(aug=0.02)),
        schedule=dict(target="magvid.diffusion.schedules:EDM", least=0.002, most=700.0, rho=7.0),
        prediction=dict(target="magvid.diffusion.predictions:V"),
        times=dict(factory="magvid.diffusion.schedules:log_normal", mean=0.7, std=1.6),
        augmentation=[-3.0, 0.5],
        **trained_parts(args),
        sampling=dict(
            target="magvid.objectives.denoise:Sampling",
            sampler=dict(target="magvid.diffusion.samplers:EulerEDM"),
            steps=2 if smoke else 25,
            guidance=guidance(args, [1.0, 3.0], 7.5),
        ),
        clip=clip,
        **chunked,
    )


def dataset(args, clip, source, key):
    """Clips with the ids of their instruction and predicted states."""
    smoke = args["smoke"]
    tokenizer = clip_sprites.TOKENIZER if smoke else dict(target="magvid.data.text:HFTokenizer", folder=f"{args['text']}/tokenizer")
    transforms = texts(args, tokenizer, "instruction" if smoke else key)
    if len(transforms) > 1 and not smoke:  # sprites know their own
        file = args["states"] or f"{args['data']}/states.json"
        transforms.insert(0, dict(target="magvid.data.states:States", path=file, key=key))
    counted = [dict(target="magvid.data.pipeline:LearnAfter", given=args["given"])] if args["learned"] == "after" else []
    clips = lambda split: sprites(*clip) if smoke else source(split, *clip) | dict(path=args["data"])
    train = latent.viewed(args, clips("train"), args["views"])
    return dict(
        train=dict(source=train, transforms=[*transforms, *counted], workers=0),
        eval=dict(source=clips("test"), transforms=transforms, limit=64),
    )


def optimisers(args, warmup):
    """A tenth of the adapters' rate for what SVD had already."""
    adamw = lambda peak: defaults.adamw(peak, warmup, b2=0.999, weight_decay=0.01)
    adapters = adamw(1e-4)
    if args["mcond"] == "replace":
        rest = adapters["rules"] if args["mask"] or any(args[name] for name in SITES) else []
        adapters["rules"] = [[CROSS, adamw(1e-5)["rules"][0][1]], *rest]
    return dict(adapters=adapters) | ({} if args["mcond"] == "none" else dict(dqformer=adamw(1e-4)))


def sprites(frames, height, width):
    """For smoke=1."""
    size = dict(frames=frames, height=height, width=width)
    return dict(target="magvid.data.sprites:Sprites", world="small", keys=("video", "label", "instruction", "states"), **size)
