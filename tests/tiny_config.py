"""A tokenizer and a masked transformer that compile and run in seconds, on sprites of 8x16x16.

`get_config("tokenizer")`; `get_config("masked,<run of a tokenizer>")`, without a run both are trained at once."""

CODES = 16
ALL = ("FP", "FI", "OPC", "OPV", "OPH", "OPD", "IPC", "IPD", "CG", "CFP")
SIZE = dict(frames=8, height=16, width=16)


def tokenizer():
    norm = dict(factory="magvid.models.layers:GroupNorm", groups=2)
    shared = dict(filters=8, multipliers=(1,), temporal=(), blocks=(0, 0), patch=(4, 4, 4), norm=norm)
    return dict(
        target="magvid.models.tokenizer:Tokenizer",
        encoder=dict(target="magvid.models.vq3d:Encoder", dim=4, **shared),
        quantizer=dict(target="magvid.models.quantizers:VQ", size=CODES, dim=4),
        decoder=dict(target="magvid.models.vq3d:Decoder", **shared),
    )


def sprites(split):
    return dict(target="magvid.data.sprites:Sprites", split=split, world="small", **SIZE)


def get_config(arg="tokenizer"):
    kind, _, run = arg.partition(",")
    if kind not in ("tokenizer", "masked"):
        raise ValueError(f'the tiny config is "tokenizer" or "masked,<run>", got "{arg}"')
    peak = dict(peak=1e-3, warmup=0, decay="constant")
    config = dict(
        seed=0,
        steps=2,
        batch=8,
        data=dict(
            train=dict(source=sprites("train"), transforms=[]),
            eval=dict(source=sprites("validation"), transforms=[], limit=8),
        ),
        optim=dict(),
        log_every=1,
        save_every=2,
        eval_every=0,
        metrics=[dict(target="magvid.metrics.sprites:SpriteJudge", world="small")],
    )
    if kind == "tokenizer":
        config["objective"] = dict(target="magvid.objectives.vqgan:VQGAN", tokenizer=tokenizer())
        config["optim"]["tokenizer"] = dict(rules=[[".*", peak]])
        return config
    n, classes = 2 * 4 * 4, 18
    vocab = dict(target="magvid.types:Vocab", codebook=CODES, classes=classes, specials=16)
    transformer = dict(
        target="magvid.models.transformer:Transformer",
        vocab=CODES + classes + 17,
        length=n + 2,
        width=16,
        depth=1,
        heads=2,
        mlp=32,
        dropout=0.0,
    )
    config["objective"] = dict(
        target="magvid.objectives.masked:Masked",
        tokenizer=dict(run=run) if run else tokenizer(),
        transformer=transformer,
        vocab=vocab,
        tasks=ALL,
        decoding=dict(steps=3, temperature=1.0),
    )
    config["data"]["train"]["transforms"] = [dict(target="magvid.data.pipeline:MaskedView", tasks=len(ALL))]
    config["data"]["eval"]["transforms"] = [dict(target="magvid.data.pipeline:MaskedView", tasks=len(ALL))]
    config["optim"]["transformer"] = dict(rules=[[".*", peak]])
    if not run:
        config["optim"]["tokenizer"] = dict(rules=[[".*", peak]])
    return config
