"""Sizes of the published autoencoders: specs that a config takes over, e.g. `vae=vaes.VAES["sd"]`.

    sd     Stable Diffusion 1.x and 2.x, ModelScope, MAVIN, MagDiff    83,653,863 parameters
    svd    Stable Video Diffusion, with a temporal decoder             97,742,847
"""

SIZES = dict(channels=(128, 256, 512, 512), layers=2, latent=4, groups=32, scaling=0.18215)

VAES = dict(
    sd=dict(target="magvid.models.vae:AutoencoderKL", **SIZES),
    svd=dict(target="magvid.models.vae:TemporalAutoencoderKL", **SIZES),
)
