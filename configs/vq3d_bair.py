"""3D-VQ on BAIR robot pushing as published; arguments and sources in configs/magvit.py.

    magvid train --config=configs/vq3d_bair.py:size=B --workdir=runs/vq3d_bair-B
"""

from configs import magvit


def get_config(arg=None):
    return magvit.vq3d("bair", arg)
