"""2D-VQ on UCF-101 as published; arguments and sources in configs/magvit.py.

    magvid train --config=configs/vq2d_ucf101.py:size=B --workdir=runs/vq2d_ucf101-B
"""

from configs import magvit


def get_config(arg=None):
    return magvit.vq2d("ucf101", arg)
