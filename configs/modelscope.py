"""ModelScope text-to-video 1.7b (Wang et al., 2023): a text -> a video, with the published weights; and training on them.

    magvid sample --config=configs/modelscope.py --prompt="a panda eats bamboo on a rock"
    magvid train --config=configs/modelscope.py:tune=lora,data=videos --workdir=runs/modelscope-lora
    magvid sample --run=runs/modelscope-lora --prompt="a horse gallops on a beach"

Converted weights are expected in weights/modelscope/{unet,vae,text} (docs/diffusion.md says how; `weights=FOLDER`). The defaults are the
published pipeline's: 16 frames of 256x256, 50 steps of DDIM, guidance 9. tune=full, temporal or lora trains on the videos in `data`,
whose texts are in captions.jsonl beside them: {"file": "cats/a.mp4", "text": "..."} per line. dtype=float32: exact, and slower on
accelerators. smoke=1: sprites, two steps of a tiny U-Net; the other weights are those of `weights`.
"""

from ml_collections import ConfigDict

from configs import defaults, latent


def get_config(arg=None):
    args = defaults.parse_arg(
        arg,
        weights="weights/modelscope",
        frames=16,
        height=256,
        width=256,
        fps=8,
        tune="",
        model=1,
        data="videos",
        dtype="bfloat16",
        smoke=False,
    )
    if args["smoke"]:
        args |= dict(frames=5, height=32, width=48, dtype="float32")
    clip = [args[name] for name in ("frames", "height", "width")]
    text = latent.converted(f"{args['weights']}/text", args["dtype"])
    config = ConfigDict(dict(seed=0))
    config.objective = dict(
        target="magvid.objectives.denoise:Denoise",
        network=latent.network(args, "modelscope"),
        vae=latent.converted(f"{args['weights']}/vae", args["dtype"]),
        conditioners=[dict(target="magvid.models.conditioners:TextTokens", text=text)],
        schedule=dict(target="magvid.diffusion.schedules:Discrete", clean_end=False),
        drop=[[["text"], 0.1]],
        sampling=dict(
            target="magvid.objectives.denoise:Sampling",
            sampler=dict(target="magvid.diffusion.samplers:DDIM"),
            steps=2 if args["smoke"] else 50,
            guidance=[[["text"], 9.0]],
        ),
        clip=clip,
    )
    transforms = [*latent.captions(args), latent.tokenizer(args)]
    config.data = dict(train=dict(source=latent.videos(args, clip, args["fps"]), transforms=transforms, workers=0))
    return latent.tune(config, args)
