"""Stable Video Diffusion (Blattmann et al., 2023): a picture -> a video, with the published weights; and training on them.

    magvid sample --config=configs/svd.py --image=a.png --number=1
    magvid train --config=configs/svd.py:tune=lora,data=videos --workdir=runs/svd-lora
    magvid sample --run=runs/svd-lora --image=a.png

Converted weights are expected in weights/svd/{unet,vae,vision} (docs/diffusion.md says how; `weights=FOLDER`). The defaults are
the published pipeline's: 14 frames (xt: `frames=25`) of 576x1024, 25 Euler steps, guidance rising from 1 to 3 over the frames, told 7
frames per second (`fps`), how much motion (`motion`: 1 to 255) and the noise on the picture (`aug`); `chunk=N` decodes N frames at
a time, to save memory. tune=full, temporal or lora trains on the videos in `data` with SVD's noise: ln(sigma) ~ N(0.7, 1.6^2), ln(noise on
the picture) ~ N(-3, 0.5^2). dtype=float32: exact, and slower on accelerators. smoke=1: sprites, two steps of a tiny U-Net; the other weights are those of `weights`.
"""

from ml_collections import ConfigDict

from configs import defaults, latent


def get_config(arg=None):
    args = latent.parse(arg, weights="weights/svd", frames=14, height=576, width=1024, fps=7, motion=127, aug=0.02, chunk=0)
    defaults.within(args, motion=(1, 255), aug=(0, 100))
    clip = [args[name] for name in ("frames", "height", "width")]
    vae = latent.converted(f"{args['weights']}/vae", args["dtype"])
    vision = latent.converted(f"{args['weights']}/vision", args["dtype"])
    config = ConfigDict(dict(seed=0))
    config.objective = dict(
        target="magvid.objectives.denoise:Denoise",
        network=latent.network(args, "svd"),
        vae=vae,
        conditioners=[
            dict(
                target="magvid.models.conditioners:ImageTokens",
                vision=vision,
                prepare=dict(factory="magvid.models.clip:prepare"),
            ),
            dict(target="magvid.models.conditioners:ImageLatent", vae=vae, aug=args["aug"]),
            dict(target="magvid.models.conditioners:Scalars", values=dict(fps=args["fps"] - 1, motion=args["motion"])),
        ],
        schedule=dict(target="magvid.diffusion.schedules:EDM", least=0.002, most=700.0, rho=7.0),
        prediction=dict(target="magvid.diffusion.predictions:V"),
        times=dict(factory="magvid.diffusion.schedules:log_normal", mean=0.7, std=1.6),
        augmentation=[-3.0, 0.5],
        drop=[[["image"], 0.1]],
        sampling=dict(
            target="magvid.objectives.denoise:Sampling",
            sampler=dict(target="magvid.diffusion.samplers:EulerEDM"),
            steps=2 if args["smoke"] else 25,
            guidance=[[["image"], [1.0, 3.0]]],
        ),
        clip=clip,
    )
    if args["chunk"]:
        config.objective.in_parts = dict(factory="magvid.models.vae:in_chunks", frames=args["chunk"])
    config.data = dict(train=dict(source=latent.videos(args, clip, args["fps"]), transforms=[], workers=0))
    return latent.tune(config, args)
