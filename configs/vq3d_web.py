"""3D-VQ on a folder of web videos as published; arguments and sources in configs/magvit.py.

    magvid train --config=configs/vq3d_web.py:size=B --workdir=runs/vq3d_web-B
"""

from configs import magvit


def get_config(arg=None):
    return magvit.vq3d("web", arg)
