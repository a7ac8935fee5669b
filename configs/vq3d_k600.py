"""3D-VQ on Kinetics-600 as published; arguments and sources in configs/magvit.py.

    magvid train --config=configs/vq3d_k600.py:size=B --workdir=runs/vq3d_k600-B
"""

from configs import magvit


def get_config(arg=None):
    return magvit.vq3d("k600", arg)
