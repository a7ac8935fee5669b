"""MaskGIT on ImageNet (Chang et al., CVPR 2022): class-conditional images, on the tokenizer of vqgan_imagenet.py.

    magvid train --config=configs/maskgit_imagenet.py --workdir=runs/maskgit_imagenet-256

or, from the published weights, without training:

    python tools/convert_magvit.py --format=maskgit --config=configs/maskgit_imagenet.py \
        --checkpoint=maskgit_imagenet256_checkpoint --workdir=runs/maskgit_imagenet-256
    magvid sample --run=runs/maskgit_imagenet-256 --label=90

size=256|512; smoke=1 takes two steps of a tiny model on sprites; init=FOLDER begins with the weights of a run.
A sequence is the class and the grid of tokens; there is no UNCOND token, so no classifier-free guidance. Sizes, optimiser
and loss are those of the released config, whose min_masking_rate (0.5) the released code does not use and which is left
out; steps of decoding are the paper's, 8 and 12 (the released demo takes 16: --steps=16).
"""

from ml_collections import ConfigDict

from configs import defaults, vqgan_imagenet

TOKENIZER = "vqgan_imagenet"
STEPS = {256: 8, 512: 12}  # of decoding


def get_config(arg=None):
    args = defaults.parse_arg(arg, size=256, smoke=False, init="")
    size, smoke, steps = args["size"], args["smoke"], defaults.choose(STEPS, args["size"], "size")
    codes, classes = (16, 18) if smoke else (1024, 1000)
    grid = 8 * 8 if smoke else (size // 16) ** 2
    config = ConfigDict(dict(seed=0, batch=4 if smoke else 256, steps=2 if smoke else 2_000_000))
    view = dict(target="magvid.data.pipeline:MaskedView", tasks=1)
    config.data = vqgan_imagenet.images(size, smoke, [view])
    config.objective = dict(
        target="magvid.objectives.masked:Masked",
        tokenizer=dict(run=f"runs/{TOKENIZER}-{'smoke' if smoke else size}", **defaults.made_by(TOKENIZER, args)),
        transformer=dict(
            target="magvid.models.transformer:Transformer",
            vocab=codes + classes + 1,  # and [MASK]
            length=1 + grid,
            width=16 if smoke else 768,
            depth=1 if smoke else 24,
            heads=2 if smoke else 16,
            mlp=32 if smoke else 3072,
            dropout=0.1,
        ),
        vocab=dict(target="magvid.types:Vocab", codebook=codes, classes=classes, specials=1, unconditional=False),
        tasks=("CG",),
        conditioning=dict(target="magvid.masked.commit:Conditioning"),
        weights=dict(target="magvid.masked.commit:LossWeights", mask=1.0, refine=0.0, recons=0.0),
        smoothing=0.1,
        decoding=dict(steps=2 if smoke else steps, temperature=4.5),
    )
    adamw = dict(name="adamw", b1=0.9, b2=0.96, eps=1e-8, weight_decay=0.045, decay_regex="kernel")
    rate = dict(peak=1e-4, warmup=0 if smoke else 5000, decay="constant")
    config.optim = dict(transformer=dict(optimizer=adamw, rules=[[".*", rate]]))
    config.log_every = 1 if smoke else 200
    config.save_every = 10_000
    if args["init"]:
        config.init = [dict(run=args["init"], weights="params")]
    return config
