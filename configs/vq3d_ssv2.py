"""3D-VQ on Something-Something-v2 as published; arguments and sources in configs/magvit.py.

    magvid train --config=configs/vq3d_ssv2.py:size=B --workdir=runs/vq3d_ssv2-B
"""

from configs import magvit


def get_config(arg=None):
    return magvit.vq3d("ssv2", arg)
