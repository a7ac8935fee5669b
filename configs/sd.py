"""Stable Diffusion (Rombach et al., CVPR 2022): a text -> a picture, with the published weights; and training on them.

    magvid sample --config=configs/sd.py:preset=sd15 --prompt="a lighthouse in a storm, oil painting" --format=png
    magvid train --config=configs/sd.py:preset=sd21,tune=lora,data=pictures --workdir=runs/sd-lora

preset=sd15, sd21 (2.1-base) or sd21v (the 768-pixel model, which predicts v). Converted weights are expected in weights/PRESET/{unet,
vae,text} (docs/diffusion.md says how; `weights=FOLDER`). 50 steps of DDIM, guidance 7.5. tune=full or lora trains on the pictures in
`data`, whose texts are in captions.jsonl beside them: {"file": "a.png", "text": "..."} per line. dtype=float32: exact, and slower on
accelerators. smoke=1: sprites, two steps of a tiny U-Net; the other weights are those of `weights`.
"""

from ml_collections import ConfigDict

from configs import defaults, latent

PRESETS = {"sd15": ("sd15", 512), "sd21": ("sd21", 512), "sd21v": ("sd21", 768)}


def get_config(arg=None):
    args = defaults.parse_arg(
        arg, preset="sd21", weights="", size=0, tune="", model=1, data="pictures", dtype="bfloat16", smoke=False
    )
    preset, size = defaults.choose(PRESETS, args["preset"], "preset")
    args["weights"] = args["weights"] or f"weights/{args['preset']}"
    height = width = args["size"] or size
    if args["smoke"]:
        height, width, args["dtype"] = 32, 48, "float32"
    text = latent.converted(f"{args['weights']}/text", args["dtype"])
    prediction = "V" if args["preset"] == "sd21v" else "Eps"
    config = ConfigDict(dict(seed=0))
    config.objective = dict(
        target="magvid.objectives.denoise:Denoise",
        network=latent.network(args, preset),
        vae=latent.converted(f"{args['weights']}/vae", args["dtype"]),
        conditioners=[dict(target="magvid.models.conditioners:TextTokens", text=text)],
        schedule=dict(target="magvid.diffusion.schedules:Discrete", clean_end=False),
        prediction=dict(target=f"magvid.diffusion.predictions:{prediction}"),
        drop=[[["text"], 0.1]],
        sampling=dict(
            target="magvid.objectives.denoise:Sampling",
            sampler=dict(target="magvid.diffusion.samplers:DDIM"),
            steps=2 if args["smoke"] else 50,
            guidance=[[["text"], 7.5]],
        ),
        clip=[1, height, width],
    )
    pictures = dict(target="magvid.data.images:ImageFolder", path=args["data"], height=height, width=width)
    transforms = [*latent.captions(args), latent.tokenizer(args)]
    if args["smoke"]:
        pictures = latent.videos(args, (4, height, width), None)
        transforms.append(dict(target="magvid.data.pipeline:Frames", indices=[0]))
    config.data = dict(train=dict(source=pictures, transforms=transforms, workers=0))
    return latent.tune(config, args, latent.TUNE[:3])
