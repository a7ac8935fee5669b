"""3D-VQ on nuScenes, front camera as published; arguments and sources in configs/magvit.py.

    magvid train --config=configs/vq3d_nuscenes.py:size=B --workdir=runs/vq3d_nuscenes-B
"""

from configs import magvit


def get_config(arg=None):
    return magvit.vq3d("nuscenes", arg)
