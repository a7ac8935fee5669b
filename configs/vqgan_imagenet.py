"""MaskGIT's tokenizer on ImageNet (Chang et al., CVPR 2022): a 2D-VQ that makes 16x16 tokens of a 256x256 image.

    magvid train --config=configs/vqgan_imagenet.py --workdir=runs/vqgan_imagenet-256

or, from the published weights, without training:

    python tools/convert_magvit.py --format=maskgit --config=configs/vqgan_imagenet.py \
        --checkpoint=tokenizer_imagenet256_checkpoint --workdir=runs/vqgan_imagenet-256

size=256|512; smoke=1 takes two steps of a tiny model on sprites; perceptual=0 trains without the perceptual loss, for
which weights/resnet50.npz is read otherwise (tools/convert_features.py); init=FOLDER begins with the weights of a run.
Sizes and weights of the losses are those of the released config; its training code is not released. An image is a video
of one frame, a class a sub-folder of data/imagenet/train, whose sorted names number them from 0 as the published labels.
"""

from ml_collections import ConfigDict

from configs import defaults

LEVELS = dict(multipliers=(1, 1, 2, 2, 4), temporal=(False,) * 4)
SMOKE = dict(multipliers=(1, 2), temporal=(False,))
# by size; channels halve with every doubling of the size, from 512 at 32 pixels
DISCRIMINATOR = {
    256: dict(filters=64, multipliers=(2, 4, 8, 8, 8, 8)),
    512: dict(filters=32, multipliers=(2, 4, 8, 16, 16, 16, 16)),
}


def get_config(arg=None):
    args = defaults.parse_arg(arg, size=256, smoke=False, perceptual=True, init="")
    smoke, discriminator = args["smoke"], defaults.choose(DISCRIMINATOR, args["size"], "size")
    dim, codes = (8, 16) if smoke else (256, 1024)
    norm = dict(factory="magvid.models.layers:LayerNorm" if smoke else "magvid.models.vq2d:FrameNorm")
    shared = dict(
        SMOKE if smoke else LEVELS,
        filters=8 if smoke else 128,
        blocks=1 if smoke else 2,
        norm=norm,
        shortcut=dict(factory="magvid.models.vq2d:branch_shortcut"),
    )
    config = ConfigDict(dict(seed=0, batch=4 if smoke else 256, steps=2 if smoke else 1_000_000))
    config.data = images(args["size"], smoke)
    config.objective = dict(
        target="magvid.objectives.vqgan:VQGAN",
        tokenizer=dict(
            target="magvid.models.tokenizer:Tokenizer",
            encoder=dict(target="magvid.models.vq2d:Encoder", dim=dim, **shared),
            quantizer=dict(target="magvid.models.quantizers:VQ", size=codes, dim=dim),
            decoder=dict(target="magvid.models.vq2d:Decoder", **shared),
        ),
        discriminator=dict(
            target="magvid.models.discriminator:Discriminator",
            pool=dict(factory="magvid.models.discriminator:blur_pool"),
            planar=True,
            **(dict(filters=4, multipliers=(1, 2)) if smoke else discriminator),
        ),
    )
    if args["perceptual"] and not smoke:  # the last map, not the logits
        resnet = dict(target="magvid.models.resnet:ResNet50", logits=False, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        config.objective.perceptual = resnet | dict(weights_file="weights/resnet50.npz")
    adam = dict(
        optimizer=dict(name="adam", b1=0.0, b2=0.99, eps=1e-8),
        rules=[[".*", dict(peak=1e-4, warmup=0, decay="constant")]],
    )
    config.optim = dict(tokenizer=adam, discriminator=adam)
    config.ema, config.ema_groups = 0.999, ("tokenizer",)
    config.log_every = 1 if smoke else 200
    config.save_every = 10_000
    config.compiler_options = dict(tpu=defaults.NO_SPACE_TO_BATCH)
    if args["init"]:
        config.init = [dict(run=args["init"], weights="params")]
    return config


def images(size, smoke, transforms=()):
    """Training and evaluation images as clips of one frame."""
    if smoke:
        source = dict(target="magvid.data.sprites:Sprites", world="small", keys=("video", "label"))
        source |= dict(frames=4, height=16, width=16)
        splits = [dict(source, split=split) for split in ("train", "validation")]
        transforms = [dict(target="magvid.data.pipeline:Frames", indices=(0,)), *transforms]
        augment = []
    else:
        source = dict(target="magvid.data.images:ImageFolder", height=size, width=size)
        splits = [
            dict(source, path=f"data/imagenet/{split}", crop=crop)
            for split, crop in (("train", "random"), ("validation", "centre"))
        ]
        augment = [dict(target="magvid.data.pipeline:Augment", flip=True)]
    return dict(
        train=dict(source=splits[0], transforms=[*augment, *transforms], workers=0 if smoke else 8),
        eval=dict(source=splits[1], transforms=list(transforms), limit=4 if smoke else 256),
    )
