"""Configs of the sizes of golden/magvit/e2e_bert_params.npz, on clips of 4x8x8 pixels that nobody has.

`get_config("tokenizer")`; `get_config("transformer,<run of a tokenizer>")`; "other" trains what no official code has."""


def get_config(arg="tokenizer"):
    kind, _, run = arg.partition(",")
    source = dict(target="magvid.data.folder:VideoFolder", path="/nowhere", frames=4, height=8, width=8, fps=12.0)
    data = dict(train=dict(source=source, transforms=[]))
    config = dict(steps=3, batch=8, data=data, seed=0)
    adam = dict(optimizer=dict(name="adam"), rules=[[".*", dict(peak=1e-3)]])
    if kind == "tokenizer":
        norm = dict(factory="magvid.models.layers:LayerNorm")
        shared = dict(filters=4, multipliers=(1, 2), temporal=(True,), blocks=1, norm=norm)
        config["objective"] = dict(
            target="magvid.objectives.vqgan:VQGAN",
            tokenizer=dict(
                target="magvid.models.tokenizer:Tokenizer",
                encoder=dict(target="magvid.models.vq3d:Encoder", dim=6, **shared),
                quantizer=dict(target="magvid.models.quantizers:VQ", size=24, dim=6),
                decoder=dict(target="magvid.models.vq3d:Decoder", **shared),
            ),
            discriminator=dict(target="magvid.models.discriminator:Discriminator", filters=4, multipliers=(1, 2)),
            perceptual=dict(target="magvid.models.resnet:ResNet50", weights_file="/nowhere/resnet50.npz"),
        )
        return config | dict(optim=dict(tokenizer=adam, discriminator=adam), ema=0.9, ema_groups=("tokenizer",))
    if kind == "other":
        return config | dict(objective=dict(target="magvid.objectives.masked:Masked"), optim=dict(denoiser=adam))
    sizes = dict(vocab=46, length=34, width=32, depth=2, heads=4, mlp=64)
    config["objective"] = dict(
        target="magvid.objectives.masked:Masked",
        tokenizer=dict(run=run),
        transformer=dict(target="magvid.models.transformer:Transformer", **sizes),
        vocab=dict(target="magvid.types:Vocab", codebook=24, classes=5),
        tasks=("official:CG", "official:FP"),
        decoding=dict(steps=6, temperature=4.5),
    )
    return config | dict(optim=dict(transformer=adam))
