"""The ablations of MAGVIT's tables 5 to 7 on sprites: what a conditioning, a loss term, a decoding, a tokenizer and its
beginning are worth at equal budgets. experiments/commit_ablation.py trains and scores all of them.

    magvid train --config=configs/ablation.py:part=vq2d --workdir=runs/ablation/vq2d-0
    magvid train --config=configs/ablation.py:part=vq3d,inflate=central --workdir=runs/ablation/vq3d-central-0
    magvid train --config=configs/ablation.py:part=transformer,row=commit,tasks=MT8 --workdir=runs/ablation/commit-MT8-0

Clips of 8x32x32 of the world "small". Tokenizers (part=vq2d, vq3d) train with the discriminator, LeCam and reflect
padding as in the paper; they have no temporal patch, so that every kernel of the 2D-VQ inflates. inflate: central |
average | 0 (at random): how the 3D-VQ and its discriminator begin, from the averaged weights of the 2D-VQ of the same
seed (the published configs begin at the last ones, as the official code does). 3D-VQ: 4x4x4 tokens a clip; 2D-VQ: 8x4x4.

Transformers (part=transformer) train on the tokens of vq3d-central, row=maskgit_2d on those of vq2d. tasks=CFP is frame
prediction given the class, because one frame of a sprite does not tell its motion; tasks=MT8 the paper's eight. row:
commit (L_mask + L_refine + L_recons), commit_mask (L_mask alone), commit_mask_recons, latent (MaskGIT's latent masking
and decoding), prefix, ar, maskgit_2d (latent masking on 2D tokens). seed=N; smoke=1: two steps of tiny models.
"""

from ml_collections import ConfigDict

from configs import defaults, tables
from configs.magvit import EIGHT

CLIP = dict(frames=8, height=32, width=32)
CLASSES, CODES, DIM = 18, 256, 32
PARTS = ("vq2d", "vq3d", "transformer")
INFLATIONS = ("central", "average", "0")
STEPS = dict(vq2d=800, vq3d=700, transformer=500)

CONDITIONING = dict(tables.ROWS, maskgit_2d=tables.ROWS["latent"], ar=tables.ROWS["prefix"])
ONE_TASK = ("prefix", "ar")  # the prefix has the length of one task's condition


def get_config(arg=None):
    args = defaults.parse_arg(
        arg, part="transformer", inflate="central", row="commit", tasks="CFP", seed=0, root="runs/ablation", smoke=False
    )
    for name, choices in (("part", PARTS), ("inflate", INFLATIONS), ("row", CONDITIONING), ("tasks", ("CFP", "MT8"))):
        defaults.choose(dict.fromkeys(choices), args[name], name)
    return _transformer(args) if args["part"] == "transformer" else _tokenizer(args)


def _config(args):
    """What all parts share: the clips, and how much is said and kept."""
    config = ConfigDict(dict(seed=args["seed"], steps=2 if args["smoke"] else STEPS[args["part"]]))
    clip = dict(target="magvid.data.sprites:Sprites", world="small", **CLIP)
    config.data = dict(
        train=dict(source=dict(clip, split="train", keys=("video", "label")), transforms=[], workers=0),
        eval=dict(source=dict(clip, split="test", keys=("video", "label", "colour", "texture")), transforms=[]),
    )
    config.metrics = [dict(target="magvid.metrics.sprites:SpriteJudge", world="small")]
    config.ema = 0.99
    config.log_every = 1 if args["smoke"] else 50
    config.save_every = 500
    config.keep = 1
    return config


def _tokenizer(args):
    planar, smoke = args["part"] == "vq2d", args["smoke"]
    config = _config(args)
    config.batch = 4
    where = "magvid.models.vq2d" if planar else "magvid.models.vq3d"
    shared = dict(
        filters=8 if smoke else 16,
        multipliers=(1, 2),
        temporal=(not planar,),
        blocks=1,
        patch=(1, 4, 4),
        norm=dict(factory="magvid.models.layers:LayerNorm"),
        padding="reflect",
    )
    config.objective = dict(
        target="magvid.objectives.vqgan:VQGAN",
        tokenizer=dict(
            target="magvid.models.tokenizer:Tokenizer",
            encoder=dict(target=f"{where}:Encoder", dim=DIM, **shared),
            quantizer=dict(target="magvid.models.quantizers:VQ", size=CODES, dim=DIM, entropy_weight=0.01),
            decoder=dict(target=f"{where}:Decoder", **shared),
        ),
        discriminator=dict(
            target="magvid.models.discriminator:Discriminator",
            filters=4 if smoke else 16,
            multipliers=(2, 4, 4),
            patch=shared["patch"],
            planar=planar,
        ),
        reconstruction=10.0,  # there is no perceptual loss beside it
        lecam_weight=0.1,
    )
    if planar:
        frames = dict(target="magvid.data.pipeline:Frames", indices=(1, 3, 4, 6))
        config.data.train.transforms = [frames]
    elif args["inflate"] != "0":
        config.init = [
            dict(run=f"{args['root']}/vq2d-{args['seed']}", map=f"magvid.models.vq3d:inflate_{args['inflate']}")
        ]
    config.optim = dict(
        tokenizer=defaults.muon(4e-3, smoke),
        discriminator=dict(
            optimizer=dict(name="adam", b1=0.0, b2=0.99, eps=1e-8),
            rules=[[".*", dict(peak=2e-4, warmup=1 if smoke else 50, decay="cosine")]],
        ),
    )
    config.ema_groups = ("tokenizer",)
    return config


def _transformer(args):
    row, smoke = args["row"], args["smoke"]
    tasks = EIGHT if args["tasks"] == "MT8" else ("CFP",)
    if row in ONE_TASK and len(tasks) > 1:
        raise ValueError(f"row={row} has one task's condition in its prefix: use tasks=CFP")
    conditioning, weights = CONDITIONING[row]
    config = _config(args)
    config.batch = 8
    frames = CLIP["frames"] if row == "maskgit_2d" else CLIP["frames"] // 2
    given = 17 if row in ONE_TASK else 0  # the tokens of the first latent frame, and SEP
    model = dict(
        target="magvid.models.causal:CausalTransformer" if row == "ar" else "magvid.models.transformer:Transformer",
        vocab=CODES + CLASSES + 1 + 16,
        length=frames * 16 + 2 + given,
        width=16 if smoke else 128,
        depth=1 if smoke else 4,
        heads=2 if smoke else 4,
        mlp=32 if smoke else 512,
        dropout=0.0,
    )
    tokenizer, made = ("vq2d", "part=vq2d") if row == "maskgit_2d" else ("vq3d-central", "part=vq3d,inflate=central")
    made += f",seed={args['seed']}" + (",smoke=1" if smoke else "")
    config.objective = dict(
        target=f"magvid.objectives.{'autoregressive:Autoregressive' if row == 'ar' else 'masked:Masked'}",
        tokenizer=dict(run=f"{args['root']}/{tokenizer}-{args['seed']}", weights="ema", config=f"configs/ablation.py:{made}"),
        transformer=model,
        vocab=dict(target="magvid.types:Vocab", codebook=CODES, classes=CLASSES, specials=16),
        tasks=tasks,
        conditioning=dict(target="magvid.masked.commit:Conditioning", **conditioning),
    )
    if row != "ar":
        config.objective.weights = dict(target="magvid.masked.commit:LossWeights", **weights)
        config.objective.decoding = dict(steps=12, temperature=4.5)
    config.data.train.transforms = [dict(target="magvid.data.pipeline:MaskedView", tasks=len(tasks))]
    if len(tasks) > 1:
        config.metrics = []  # the judge is asked where the class is given
    config.optim = dict(transformer=defaults.adamw(3e-3, 1 if smoke else 100, b2=0.96, weight_decay=0.045))
    return config
