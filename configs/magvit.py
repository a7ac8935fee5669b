"""MAGVIT's published settings: sizes, data sets, schedules (Yu et al., CVPR 2023, appendix; what is marked "code" from
the official configs). The files vq2d_*, vq3d_* and commit_* name one row each.

Arguments of all: size=B|L|H; smoke=1 takes two steps of a tiny model on sprites; official=1 takes the released code's
choices where they differ from the paper's: zero instead of reflect padding, no LeCam, shared task tokens with their
rounded regions. Tokenizers: perceptual=0 trains without the perceptual loss, for which
`weights/resnet50.npz` is read otherwise (tools/convert_features.py; the official release's is silently 0).
Transformers: views=8 trains on so many fixed random views of each clip instead of new ones in every epoch, so that their
tokens can be kept (`magvid encode`). Both of videos: i3d=FILE measures FVD and KVD, c3d=FILE the Inception Score, lpips=FILE LPIPS by VGG-16; FVD against the held-out clips or real=FILE (docs/metrics.md).

Where tokenizers begin: vq2d_imagenet at random; a 3D-VQ as that 2D-VQ, centrally inflated (paper, section 3.1), from
runs/vq2d_imagenet-<size> (64 pixels: runs/vq2d_imagenet_64-<size>). inflate=average|0: the other inflation, or at
random; begin=frames: as the 2D-VQ on the frames of the same data set, runs/vq2d_<name>-<size>. Such a 2D-VQ begins as
ImageNet's too (code); begin=0: at random. Of all: init=FOLDER begins with the weights of a run of the same model, such
as a converted checkpoint (tools/convert_magvit.py).

Data: source=folder reads data/<name>/train and /validation, one class per sub-folder (see `magvid.data.folder` and
`.images`); source=tfds a data set that TFDS has prepared (see `magvid.data.tfds`), in $TFDS_DATA_DIR. BAIR and ImageNet
default to TFDS, the others to folders. Evaluation on BAIR: the first 256 clips are the beginnings of the test videos,
all 3,840 are 15 windows of each (the paper's "debiased" FVD).

`--config.microbatch=N` bounds what a device holds of the global batch; the rest is the same on one GPU and on a pod.
"""

from ml_collections import ConfigDict

from configs import defaults


def row(
    size, clips, classes, vq3d=(), commit=(), tasks=(), vq2d=1000, frames=16, stride=1, flip=True, windows=0,
    source="folder", tfds=None,
):
    """A data set. size: pixels; clips: of one epoch; vq3d, commit: epochs of (B, L), H as L; vq2d: epochs (code:
    UCF-101's); tasks: as in the paper's tables; flip: whether left and right may be exchanged; windows: of a video in
    evaluation, 0 its middle; source: the default; tfds: (its name there, the split held out, arguments).
    """
    return ConfigDict(locals())


TEN = ("FP", "FI", "OPC", "OPV", "OPH", "OPD", "IPC", "IPD", "CG", "CFP")
EIGHT = TEN[:8]
DATA = {
    # of ImageNet's 2D-VQ are not published: epochs (100 here), crops and mirroring
    "imagenet": row(128, 1_281_167, 1000, vq2d=100, frames=1, source="tfds", tfds=("imagenet2012", "validation", {})),
    "ucf101": row(128, 9_537, 101, (500, 2000), (2000, 2000), ("CG",), tfds=("ucf101/ucf101_1", "test", {})),
    "bair": row(
        64, 43_264, 0, (400, 800), (400, 800), ("FP",), windows=15, source="tfds",
        tfds=("bair_robot_pushing_small", "test", dict(picture="image_aux1")),
    ),
    "k600": row(128, 384_000, 0, (45, 180), (180, 360), ("FP5",)),
    "ssv2": row(128, 169_000, 174, (135, 400), (720, 1440), TEN, flip=False),
    # which tasks these three were trained on is not confirmed: compare the paper's table 4
    "nuscenes": row(128, 5_400, 0, (1280, 5120), (2560, 10240), ("FP",)),
    "objectron": row(128, 14_400, 0, (1000, 2000), (1000, 2000), ("FI",)),
    "web": row(128, 12_000_000, 0, (5, 20), (10, 20), EIGHT),
}

# Of the tokenizers by height and width in pixels.
LEVELS = {
    128: dict(multipliers=(1, 2, 2, 4), temporal=(True, True, False)),
    64: dict(multipliers=(1, 2, 4), temporal=(True, True)),
}
DISCRIMINATOR = {128: (2, 4, 4, 4, 4), 64: (2, 4, 4, 4)}
TOKENIZER = {
    "B": dict(filters=64, blocks=2, dim=256, codes=1024, remat=0, batch=128),
    "L": dict(filters=128, blocks=2, dim=256, codes=1024, remat=1, batch=256),
    "H": dict(filters=128, blocks=4, dim=512, codes=4096, remat=3, batch=256),
}
TRANSFORMER = {
    "B": dict(depth=12, width=768, heads=12),
    "L": dict(depth=24, width=1024, heads=16),
    "H": dict(depth=32, width=1280, heads=16),
}
BATCH_2D = BATCH_COMMIT = 256
SMOKE = dict(frames=4, height=16, width=16)


def vq3d(name, arg=None):
    """The 3D-VQ of a data set."""
    args, data, size = _args(name, arg, perceptual=True, begin="imagenet", inflate="central", **defaults.MEASURES)
    s = TOKENIZER[args["size"]]
    epochs, clips = data.vq3d[args["size"] != "B"], _clips(name, data, args)
    config = _tokenizer(data, args, s["batch"], epochs, clips, planar=False)
    runs = {"imagenet": _imagenet_run(data, size), "frames": f"runs/vq2d_{name}-{size}"}
    run = defaults.choose(runs, args["begin"], "begin")
    init = defaults.inflate(args["inflate"], run)
    if init and not args["smoke"] and not args["init"]:
        config.init = init
    config.metrics = defaults.measured(args, "stretched", "vgg")
    return config


def vq2d(name, arg=None):
    """The 2D-VQ on frames of a data set."""
    args, data, size = _args(name, arg, perceptual=True, begin="imagenet")
    frames = dict(target="magvid.data.pipeline:Frames", indices=(0, 1) if args["smoke"] else (3, 6, 10, 13))
    config = _tokenizer(data, args, BATCH_2D, data.vq2d, _clips(name, data, args, [frames]), planar=True)
    run = defaults.choose({"imagenet": _imagenet_run(data, size), "0": None}, args["begin"], "begin")
    if run and not args["smoke"] and not args["init"]:
        config.init = [dict(run=run, weights="params")]
    return config


def vq2d_imagenet(arg=None):
    """The 2D-VQ on ImageNet that the others begin as; pixels=64 for those of BAIR."""
    args, data, _ = _args("imagenet", arg, perceptual=True, pixels=128)
    defaults.choose(LEVELS, args["pixels"], "pixels")
    data = ConfigDict(data.to_dict() | dict(size=args["pixels"]))
    image = [dict(target="magvid.data.pipeline:Window", frames=1)] if args["smoke"] else []
    return _tokenizer(data, args, BATCH_2D, data.vq2d, _clips("imagenet", data, args, image), planar=True)


def _imagenet_run(data, size):
    return f"runs/vq2d_imagenet{'' if data.size == 128 else f'_{data.size}'}-{size}"


def _tokenizer(data, args, batch, epochs, clips, planar):
    smoke, s = args["smoke"], TOKENIZER[args["size"]]
    levels = dict(multipliers=(1, 1), temporal=(True,)) if smoke else LEVELS[data.size]
    levels = dict(levels, temporal=(False,) * len(levels["temporal"])) if planar else levels
    where = "magvid.models.vq2d" if planar else "magvid.models.vq3d"
    norm = "magvid.models.vq2d:FrameNorm" if planar else "magvid.models.layers:GroupNorm"
    shared = dict(
        levels,
        filters=8 if smoke else s["filters"],
        blocks=1 if smoke else s["blocks"],
        norm=dict(factory="magvid.models.layers:LayerNorm" if smoke else norm),
        padding="zero" if args["official"] else "reflect",
        remat=0 if smoke else s["remat"],
    )
    dim, codes = (8, 16) if smoke else (s["dim"], s["codes"])
    config = ConfigDict(dict(seed=0, batch=4 if smoke else batch, data=clips))
    per_epoch = max(data.clips // config.batch, 1)
    config.steps = 2 if smoke else epochs * per_epoch
    config.objective = dict(
        target="magvid.objectives.vqgan:VQGAN",
        tokenizer=dict(
            target="magvid.models.tokenizer:Tokenizer",
            encoder=dict(target=f"{where}:Encoder", dim=dim, **shared),
            quantizer=dict(target="magvid.models.quantizers:VQ", size=codes, dim=dim),
            decoder=dict(target=f"{where}:Decoder", **shared),
        ),
        discriminator=dict(
            target="magvid.models.discriminator:Discriminator",
            filters=4 if smoke else s["filters"],
            multipliers=(1, 2) if smoke else DISCRIMINATOR[data.size],
            planar=planar,
        ),
        lecam_weight=0.0 if args["official"] else 0.1,  # the paper has LeCam, but not its weight
        adversarial_start=0,
        restart=False,
    )
    if args["perceptual"] and not smoke:  # logits of frames in [0, 1], not normalised
        config.objective.perceptual = dict(
            target="magvid.models.resnet:ResNet50",
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            weights_file="weights/resnet50.npz",
        )
    adam = dict(
        optimizer=dict(name="adam", b1=0.0, b2=0.99, eps=1e-8),
        rules=[[".*", dict(peak=1e-4, warmup=0 if smoke else per_epoch, decay="cosine")]],
    )
    config.optim = dict(tokenizer=adam, discriminator=adam)
    config.ema, config.ema_groups = 0.999, ("tokenizer",)
    config.compiler_options = dict(tpu=defaults.NO_SPACE_TO_BATCH)
    config.log_every = 1 if smoke else 200
    config.save_every = 1000
    config.keep = 5
    if args["init"]:
        config.init = [dict(run=args["init"], weights="params")]
    return config


def commit(name, arg=None, tokenizer=None, tasks=None, epochs=None, decoding=None):
    """The masked transformer of a data set on the tokenizer in runs/<tokenizer>-<size>, by default vq3d_<name>; size H is
    on the tokenizer of size L.

    `tasks` and `epochs` in place of the data set's; `decoding` in place of 12 steps, cosine schedule, temperature 4.5.
    """
    args, data, size = _args(name, arg, views=0, **defaults.MEASURES)
    smoke, s = args["smoke"], TRANSFORMER[args["size"]]
    tasks = tasks or data.tasks
    if args["official"]:
        tasks = tuple(f"official:{task}" for task in tasks)
    several, classes = len(tasks) > 1, 18 if smoke and data.classes else data.classes
    codes = 16 if smoke else 1024  # of size H too: with them it has the paper's 634M parameters
    grid = 2 * 8 * 8 if smoke else 4 * 16 * 16
    specials = 16 if several else 1
    length = grid + (2 if several else 1)
    width, mlp = (16, 32) if smoke else (s["width"], 4 * s["width"])
    config = ConfigDict(dict(seed=0, batch=4 if smoke else BATCH_COMMIT))
    view = dict(target="magvid.data.pipeline:MaskedView", tasks=len(tasks))
    config.data = _clips(name, data, args, [view])
    per_epoch = max(data.clips // config.batch, 1)
    config.steps = 2 if smoke else (epochs or data.commit)[args["size"] != "B"] * per_epoch
    config.objective = dict(
        target="magvid.objectives.masked:Masked",
        tokenizer=tokenizer_run(tokenizer or f"vq3d_{name}", args),
        transformer=dict(
            target="magvid.models.transformer:Transformer",
            vocab=codes + classes + 1 + specials,
            length=length,
            width=width,
            depth=1 if smoke else s["depth"],
            heads=2 if smoke else s["heads"],
            mlp=mlp,
            dropout=0.1,
        ),
        vocab=dict(target="magvid.types:Vocab", codebook=codes, classes=classes, specials=specials),
        tasks=tasks,
        decoding=dict(steps=12, temperature=4.5, schedule="cosine") | (decoding or {}),
        guidance=0.0,
        condition_drop=0.0,
        overlap=5 if "FP5" in data.tasks else 1,
    )
    config.optim = dict(transformer=defaults.adamw(1e-4, 0 if smoke else 5000, b2=0.96, weight_decay=0.045))
    config.log_every = 1 if smoke else 200
    config.save_every = 1000
    config.keep = 5
    if args["init"]:
        config.init = [dict(run=args["init"], weights="params")]
    config.metrics = defaults.measured(args, "stretched", "vgg")
    return config


def tokenizer_run(name, args, size=None):
    """The reference to the tokenizer that the config `name` makes; size H is on that of size L."""
    size = size or ("L" if args["size"] == "H" else args["size"])
    own = dict(size=size, smoke=args["smoke"], official=args["official"])
    return dict(run=f"runs/{name}-{'smoke' if args['smoke'] else size}", **defaults.made_by(name, own, *(["official=1"] if args["official"] else [])))


def _args(name, arg, **more):
    """(arguments, row of DATA, size with which run folders are named)."""
    more["source"] = DATA[name].source
    args = defaults.parse_arg(arg, size="B", smoke=False, official=False, init="", **more)
    defaults.choose(TRANSFORMER, args["size"], "size")
    return args, DATA[name], "smoke" if args["smoke"] else args["size"]


def _clips(name, data, args, transforms=()):
    """Training and evaluation clips: random moments and crops, mirrored where left and right are alike."""
    if args["smoke"]:
        source = dict(target="magvid.data.sprites:Sprites", world="small", keys=("video", "label"), **SMOKE)
        splits = [dict(source, split=split) for split in ("train", "validation")]
        augment = []
    else:
        splits = list(_sources(name, data, args["source"]))
        augment = [dict(target="magvid.data.pipeline:Augment", flip=True)] if data.flip else []
    if args.get("views"):
        clips = defaults.SMOKE_CLIPS if args["smoke"] else 0
        splits[0], augment = defaults.views(splits[0], args["views"], clips, augment), []
    return dict(
        train=dict(source=splits[0], transforms=[*augment, *transforms], workers=0 if args["smoke"] else 8),
        eval=dict(source=splits[1], transforms=list(transforms), limit=4 if args["smoke"] else 256),
    )


def _sources(name, data, kind):
    """(training, evaluation) source of kind "folder" or "tfds"."""
    pixels, time = dict(height=data.size, width=data.size), dict(frames=data.frames, stride=data.stride)
    train, held_out = dict(crop="random"), dict(crop="centre")
    if data.windows:
        held_out["windows"] = data.windows
    if data.frames == 1:
        folder = dict(target="magvid.data.images:ImageFolder", **pixels)
    else:
        folder = dict(target="magvid.data.folder:VideoFolder", **pixels, **time)
    paths = [f"data/{name}/{split}" for split in ("train", "validation")]
    kinds = {"folder": (dict(folder, path=paths[0], **train), dict(folder, path=paths[1], **held_out))}
    if data.tfds:
        title, split, more = data.tfds
        tfds = dict(target="magvid.data.tfds:TFDS", name=title, data_dir="", **pixels, **time, **more)
        kinds["tfds"] = (dict(tfds, split="train", **train), dict(tfds, split=split, **held_out))
    return defaults.choose(kinds, kind, "source")
