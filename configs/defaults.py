"""Blocks that the configs share. A config is plain data: it names magvid's classes by path and imports nothing of
magvid.
"""


# Places of parameters over a mesh axis "model" (Shoeybi et al., 2019): of all networks heads and the inner width of feed-forwards, the channels between the two
# convolutions of a residual block, and the inner width of adapters; all else lies over the data
TENSOR = [
    [r"(attention/(query|key|value)|mlp_in)/kernel$", [None, "model"]],  # MAGVIT's transformer
    [r"attention/out/kernel$", ["model"]],
    [r"mlp_out/kernel$", ["model", None]],
    [r"(to_[qkv]|ff(_in)?/proj|(beside_\w+|after_res)/down)/kernel$", [None, "model"]],  # U-Nets, adapters
    [r"(to_out|ff(_in)?/out|(beside_\w+|after_res)/up)/kernel$", ["model", None]],
    [r"([qkv]_proj|fc1)/kernel$", [None, "model"]],  # CLIP
    [r"(out_proj|fc2)/kernel$", ["model", None]],
    [r"(/resnets_\d+/conv1|ResBlock_\d+/Conv_0)/kernel$", ["...", "model"]],  # U-Nets and autoencoders; tokenizers and discriminators
    [r"(/resnets_\d+/conv2|tokenizer/.*ResBlock_\d+/Conv_1|discriminator/.*ResBlock_\d+/Conv_2)/kernel$", ["...", "model", None]],
    [r".*", "fsdp"],
]
# Of a convolution of few clips XLA makes one of many parts of them, which its neighbours hold three times over: a step of 3D-VQ-L with one clip on a chip of a
# v5e-256 wants 9.4 GB beside its weights with it and 5.8 GB without, and reads and writes 246 and 130 GB; one of BAIR's 2D-VQ-B 1.04 and 0.59 GB, 18.8 and
# 9.4 GB; the least time of AID's without a multimodal condition is 56 and 46 ms on 8 chips of a v5p (libtpu 0.0.42.1; benchmarks/README.md)
NO_SPACE_TO_BATCH = dict.fromkeys((f"xla_tpu_run_space_to_batch{where}" for where in ("", "_on_new_platforms", "_after_spmd")), False)


def parse_arg(arg, **defaults):
    """ "size=B,smoke=1" -> the defaults with these values, in the defaults' types. ValueError names an unknown or
    ill-typed one.
    """
    values = dict(defaults)
    for item in filter(None, (arg or "").split(",")):
        name, _, text = item.partition("=")
        if name not in defaults:
            raise ValueError(
                f'the config takes no argument "{name}"; it takes {", ".join(f"{k}={v}" for k, v in defaults.items())}'
            )
        kind = type(defaults[name])
        try:
            values[name] = bool(int(text or 1)) if kind is bool else kind(text)
        except ValueError:
            raise ValueError(f'the config argument {name}="{text}" is not of type {kind.__name__}') from None
    return values


def choose(table, name, what):
    """A row of a table, or a ValueError that lists its rows."""
    if name not in table:
        raise ValueError(f'{what}="{name}" is unknown; choose of {", ".join(str(k) for k in table if k != "")}')
    return table[name]


def made_by(name, args, *more):
    """The entry of a reference to a run that says which config makes it: `name`, with the same budget or size, and as small for smoke=1."""
    own = [f"{key}={args[key]}" for key in ("budget", "size") if key in args] + (["smoke=1"] if args["smoke"] else [])
    return dict(config=f"configs/{name}.py:{','.join([*own, *more])}")


def within(args, **ranges):
    """ValueError for an argument outside of its (least, most)."""
    for name, (low, high) in ranges.items():
        if not low <= args[name] <= high:
            raise ValueError(f"the config argument {name}={args[name]} lies outside of {low} to {high}")


def inflate(how, run):
    """`init` of a 3D-VQ that begins as the 2D-VQ in `run`; how: central, average, or 0: at random."""
    choose({"central": 1, "average": 1, "0": 1}, how, "inflate")
    return [] if how == "0" else [dict(run=run, map=f"magvid.models.vq3d:inflate_{how}", weights="params")]


def adamw(peak, warmup, b2=0.99, weight_decay=0.0, clip=1.0):
    """AdamW, linear warm-up, cosine to 0; decay on kernels only."""
    optimizer = dict(name="adamw", b1=0.9, b2=b2, eps=1e-8, weight_decay=weight_decay, decay_regex="kernel")
    return dict(optimizer=optimizer, rules=[[".*", dict(peak=peak, warmup=warmup, decay="cosine")]], clip=clip)


def muon(peak, smoke=False):
    """Muon on convolutions and linear layers, whose last axis is the output, and Adam on the rest; linear warm-up, cosine to 0. `smoke`: of one
    iteration each, so that there is less to compile.
    """
    optimizer = dict(name="muon", matrices=(("kernel", -1),), iterations=1 if smoke else 3, b1=0.9, b2=0.99)
    return dict(optimizer=optimizer, rules=[[".*", dict(peak=peak, warmup=1 if smoke else 50, decay="cosine")]], clip=1.0)


def paced(config, smoke, evaluations=4):
    """How often a run on sprites logs, is evaluated and saved, by its `steps`. Returns the config."""
    config.log_every = 1 if smoke else 20
    config.eval_every = 0 if smoke else config.steps // evaluations
    config.save_every = 500
    config.keep = 2
    return config


# Arguments of the published configs: weights of I3D for FVD and KVD, of C3D for the Inception Score, of LPIPS, and features of real clips in place of the held-out
# ones (tools/convert_features.py, tools/reference_stats.py). Empty: not measured, as whoever trains may not have them. folds: of clips, over which means are taken
MEASURES = dict(i3d="", c3d="", lpips="", real="", folds=1)


def measured(args, prepare="short_side", backbone="alex"):
    """The metrics that `MEASURES` ask for. prepare: a function of `magvid.metrics.frechet`; backbone: of LPIPS."""
    if args["real"] and not args["i3d"]:
        raise ValueError(f"real={args['real']} is compared with by FVD: give the weights of I3D as well, i3d=FILE")
    within(args, folds=(1, 1000))
    net = lambda name, **fields: dict(net=dict(target=f"magvid.models.{name.lower()}:{name}", weights_file=args[name.lower()], **fields))
    real = dict(real=dict(target="magvid.metrics.frechet:Real", weights_file=args["real"])) if args["real"] else {}
    factory = dict(factory=f"magvid.metrics.frechet:{prepare}")
    metrics = dict(
        i3d=dict(target="magvid.metrics.frechet:VideoDistance", **net("I3D"), prepare=factory, folds=args["folds"], **real),
        c3d=dict(target="magvid.metrics.inception_score:InceptionScore", **net("C3D"), folds=args["folds"]),
        lpips=dict(target="magvid.metrics.lpips:PerceptualDistance", **net("LPIPS", backbone=backbone)),
    )
    return [metric for name, metric in metrics.items() if args[name]]


def tokenizer(
    filters, multipliers, temporal, blocks, dim, codes, patch=(1, 1, 1), norm="GroupNorm", entropy=0.1, planar=False
):
    """A 3D-VQ tokenizer; MAGVIT-B at 128x128 is tokenizer(64, (1, 2, 2, 4), (True, True, False), 2, 256, 1024). planar:
    the 2D-VQ that inflates to it, where `patch` leaves time alone and `norm` is not GroupNorm.
    """
    where = "magvid.models.vq2d" if planar else "magvid.models.vq3d"
    temporal = (False,) * len(temporal) if planar else temporal
    shared = dict(
        filters=filters,
        multipliers=multipliers,
        temporal=temporal,
        blocks=blocks,
        patch=patch,
        norm=dict(factory=f"magvid.models.layers:{norm}"),
    )
    return dict(
        target="magvid.models.tokenizer:Tokenizer",
        encoder=dict(target=f"{where}:Encoder", dim=dim, **shared),
        quantizer=dict(target="magvid.models.quantizers:VQ", size=codes, dim=dim, entropy_weight=entropy),
        decoder=dict(target=f"{where}:Decoder", **shared),
    )


def masked(codes, classes, latent, width, depth, heads, tasks, tokenizer, dropout=0.0, overlap=1, **decoding):
    """COMMIT on a trained tokenizer; `latent` is the grid (t', h', w'); `tokenizer` a spec, or dict(run=...,
    weights=...).
    """
    vocab = dict(target="magvid.types:Vocab", codebook=codes, classes=classes, specials=16)
    n = latent[0] * latent[1] * latent[2] + 2
    sizes = dict(vocab=codes + classes + 17, length=n, width=width, depth=depth, heads=heads, mlp=4 * width)
    return dict(
        target="magvid.objectives.masked:Masked",
        tokenizer=tokenizer,
        transformer=dict(target="magvid.models.transformer:Transformer", dropout=dropout, **sizes),
        vocab=vocab,
        tasks=tasks,
        decoding=dict(steps=12, temperature=4.5, schedule="cosine") | decoding,
        overlap=overlap,
        guidance=0.0,
        condition_drop=0.0,
    )


SMOKE_CLIPS = 8  # of the 2^20 sprites, where they are viewed


def views(source, views=1, clips=0, transforms=()):
    """`views` fixed views of each of the first `clips` clips (0: of all): their tokens or latents can be kept by `magvid encode`."""
    return dict(target="magvid.data.views:Views", source=source, views=views, clips=clips, transforms=transforms)
