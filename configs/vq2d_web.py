"""2D-VQ on a folder of web videos as published; arguments and sources in configs/magvit.py.

    magvid train --config=configs/vq2d_web.py:size=B --workdir=runs/vq2d_web-B
"""

from configs import magvit


def get_config(arg=None):
    return magvit.vq2d("web", arg)
