"""ModelScope text-to-video 1.7b (Wang et al., 2023): a text -> a video, with the published weights; and training on them.

    magvid sample --config=configs/modelscope.py --prompt="a panda eats bamboo on a rock"
    magvid train --config=configs/modelscope.py:tune=lora,data=videos --workdir=runs/modelscope-lora
    magvid sample --run=runs/modelscope-lora --prompt="a horse gallops on a beach"

Converted weights are expected in weights/modelscope/{unet,vae,text} (docs/diffusion.md says how; `weights=FOLDER`). The defaults are the
published pipeline's: 16 frames of 256x256, 50 steps of DDIM, guidance 9. tune=full, temporal or lora trains on the videos in `data`,
whose texts are in captions.jsonl beside them: {"file": "cats/a.mp4", "caption": "..."} per line. dtype=float32: exact, and slower on
accelerators. smoke=1: sprites, two steps of a tiny U-Net; the other weights are those of `weights`.
"""

from ml_collections import ConfigDict

from configs import latent


def get_config(arg=None):
    args = latent.parse(arg, weights="weights/modelscope", frames=16, height=256, width=256, fps=8)
    clip = [args[name] for name in ("frames", "height", "width")]
    config = ConfigDict(dict(seed=0))
    config.objective = latent.told_text(args, "modelscope", clip, guidance=9.0)
    transforms = [*latent.captions(args), latent.tokenizer(args)]
    config.data = dict(train=dict(source=latent.videos(args, clip, args["fps"], captioned=True), transforms=transforms, workers=0))
    return latent.tune(config, args)
