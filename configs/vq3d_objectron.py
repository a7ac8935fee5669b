"""3D-VQ on Objectron as published; arguments and sources in configs/magvit.py.

    magvid train --config=configs/vq3d_objectron.py:size=B --workdir=runs/vq3d_objectron-B
"""

from configs import magvit


def get_config(arg=None):
    return magvit.vq3d("objectron", arg)
