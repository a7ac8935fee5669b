"""2D-VQ on Kinetics-600 as published; arguments and sources in configs/magvit.py.

    magvid train --config=configs/vq2d_k600.py:size=B --workdir=runs/vq2d_k600-B
"""

from configs import magvit


def get_config(arg=None):
    return magvit.vq2d("k600", arg)
