"""The rows of MAGVIT's tables 5 and 6 (BAIR robot pushing) and 7 (tokenizers on UCF-101) as configs; the files table5_*,
table6_* and table7_* name one each.

Arguments: those of configs/magvit.py, and in table 5 tasks=FP|MT8. Reported FVD, debiased evaluation (paper):

    table 5                              FP    MT8   | table 6, FP                             steps   FVD
    table5_latent        MaskGIT's       74    151   | table6_maskgit_2d   2D-VQ, MTM            12    222 (177)
    table5_prefix                        55      -   | table6_maskgit_3d   3D-VQ, MTM            12    122 (74)
    table5_commit_mask   L_mask         388    143   | table6_ar           3D-VQ, causal       1024     91 (56)
    table5_commit_mask_recons            51     53   | table6_magvit       3D-VQ, COMMIT         12     76 (48)
    table5_commit        all three       48     33   |

(51 and 53 are scrambled in the text at hand: one of them belongs to the other column.) Table 6 gives FVD by the standard
protocol, in brackets debiased. Not here: MaskViT's row of table 6 and TATS' of table 7, which the paper quotes.

Reconstruction FVD of table 7, by where the tokenizer begins:

    table7_vq2d      begin=0: 240   begin=imagenet: 216
    table7_vq3d_b    inflate=0: 127   inflate=average: 103   inflate=central: 58
    table7_vq3d_l    inflate=0: 45    inflate=average: 35    inflate=central: 25
"""

from configs import defaults, magvit

ARGS = dict(size="B", smoke=False, official=False, views=0, init="", source="tfds", **defaults.MEASURES)  # of configs/magvit.py
EPOCHS = {"FP": (400, 800), "MT8": (1200, 1600)}  # of (B, L): released configs

# row: (fields of `masked.commit:Conditioning`, weights of L_mask, L_refine and L_recons). Latent masking never masks the
# condition's tokens and trains the others alone: its loss on shown tokens is that of MaskGIT, none.
ROWS = {
    "latent": (dict(fixed="condition"), dict(mask=1.0, refine=0.0, recons=0.0)),
    "prefix": (dict(prefix=True), dict(mask=1.0, refine=0.0, recons=1.0)),
    "commit_mask": (dict(refine=True), dict(mask=1.0, refine=0.0, recons=0.0)),
    "commit_mask_recons": (dict(refine=True), dict(mask=1.0, refine=0.0, recons=1.0)),
    "commit": (dict(refine=True), dict(mask=1.0, refine=1.0, recons=1.0)),
}


def table5(row, arg=None):
    """A row of table 5: how a masked transformer is conditioned, and which losses it has."""
    args = defaults.parse_arg(arg, **ARGS, tasks="FP")
    epochs = defaults.choose(EPOCHS, args["tasks"], "tasks")
    if row == "prefix" and args["tasks"] != "FP":
        raise ValueError("a prefix of condition tokens has the length of one task's: use tasks=FP")
    tasks = magvit.EIGHT if args["tasks"] == "MT8" else ("FP",)
    return _row(row, args, tasks, epochs)


def table6(row, arg=None):
    """A row of table 6: how tokens are decoded, and of which tokenizer they are."""
    args = defaults.parse_arg(arg, **ARGS)
    kind = {"maskgit_2d": "latent", "maskgit_3d": "latent", "ar": "prefix", "magvit": "commit"}[row]
    config = _row(kind, args, ("FP",), EPOCHS["FP"])
    if row == "maskgit_2d":  # 53M parameters in the paper: the 2D-VQ of size L, 16x16 tokens for each of 16 frames
        config.objective.tokenizer = magvit.tokenizer_run("vq2d_bair", args, "L")
        config.objective.transformer.length = 1 + (4 * 8 * 8 if args["smoke"] else 16 * 16 * 16)
    if row == "ar":
        config.objective = _autoregressive(config.objective)
        config.optim.transformer.optimizer.decay_regex = ".*"  # released: decay on everything
    return config


def table7(row, arg=None):
    """A row of table 7: a tokenizer on UCF-101; the arguments say where it begins."""
    make, size = {"vq2d": (magvit.vq2d, "L"), "vq3d_b": (magvit.vq3d, "B"), "vq3d_l": (magvit.vq3d, "L")}[row]
    if "size=" in (arg or ""):
        raise ValueError(f"table 7 has {row} in size {size}: leave out size")
    return make("ucf101", f"size={size},{arg or ''}")


def _row(row, args, tasks, epochs):
    own = ",".join(f"{name}={int(args[name]) if name in ('smoke', 'official') else args[name]}" for name in ARGS)
    config = magvit.commit("bair", own, tasks=tasks, epochs=epochs)
    conditioning, weights = ROWS[row]
    config.objective.conditioning = dict(target="magvid.masked.commit:Conditioning", **conditioning)
    config.objective.weights = dict(target="magvid.masked.commit:LossWeights", **weights)
    if row == "prefix":  # the tokens of the first latent frame, and SEP
        config.objective.transformer.length += (8 * 8 if args["smoke"] else 16 * 16) + 1
    return config


def _autoregressive(masked):
    """The objective of the causal transformer of the same size."""
    transformer = dict(masked.transformer, target="magvid.models.causal:CausalTransformer")
    kept = {name: masked[name] for name in ("tokenizer", "vocab", "tasks", "conditioning")}
    return dict(kept, target="magvid.objectives.autoregressive:Autoregressive", transformer=transformer)
