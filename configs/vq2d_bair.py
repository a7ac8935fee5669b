"""2D-VQ on BAIR robot pushing as published; arguments and sources in configs/magvit.py.

    magvid train --config=configs/vq2d_bair.py:size=B --workdir=runs/vq2d_bair-B
"""

from configs import magvit


def get_config(arg=None):
    return magvit.vq2d("bair", arg)
