"""2D-VQ on nuScenes, front camera as published; arguments and sources in configs/magvit.py.

    magvid train --config=configs/vq2d_nuscenes.py:size=B --workdir=runs/vq2d_nuscenes-B
"""

from configs import magvit


def get_config(arg=None):
    return magvit.vq2d("nuscenes", arg)
