"""2D-VQ on Objectron as published; arguments and sources in configs/magvit.py.

    magvid train --config=configs/vq2d_objectron.py:size=B --workdir=runs/vq2d_objectron-B
"""

from configs import magvit


def get_config(arg=None):
    return magvit.vq2d("objectron", arg)
