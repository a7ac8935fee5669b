"""Stable Diffusion (Rombach et al., CVPR 2022): a text -> a picture, with the published weights; and training on them.

    magvid sample --config=configs/sd.py:preset=sd15 --prompt="a lighthouse in a storm, oil painting" --format=png
    magvid train --config=configs/sd.py:preset=sd21,tune=lora,data=pictures --workdir=runs/sd-lora

preset=sd15, sd21 (2.1-base) or sd21v (the 768-pixel model, which predicts v). Converted weights are expected in weights/PRESET/{unet,
vae,text} (docs/diffusion.md says how; `weights=FOLDER`). 50 steps of DDIM, guidance 7.5. tune=full or lora trains on the pictures in
`data`, whose texts are in captions.jsonl beside them: {"file": "a.png", "caption": "..."} per line. dtype=float32: exact, and slower on
accelerators. smoke=1: sprites, two steps of a tiny U-Net; the other weights are those of `weights`.
"""

from ml_collections import ConfigDict

from configs import defaults, latent

PRESETS = {"sd15": ("sd15", 512, "Eps"), "sd21": ("sd21", 512, "Eps"), "sd21v": ("sd21", 768, "V")}


def get_config(arg=None):
    args = latent.parse(arg, preset="sd21", weights="", height=0, width=0)
    preset, size, prediction = defaults.choose(PRESETS, args["preset"], "preset")
    args["weights"] = args["weights"] or f"weights/{args['preset']}"
    height, width = args["height"] or size, args["width"] or size
    config = ConfigDict(dict(seed=0))
    config.objective = latent.told_text(args, preset, [1, height, width], guidance=7.5, prediction=prediction)
    transforms = [*latent.captions(args), latent.tokenizer(args)]
    config.data = dict(train=dict(source=latent.pictures(args, height, width), transforms=transforms, workers=0))
    return latent.tune(config, args, latent.TUNE[:3])
