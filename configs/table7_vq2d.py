"""Table 7: a 2D-VQ on frames (53M parameters in the paper: size L); arguments in configs/magvit.py, but for size.

    magvid train --config=configs/table7_vq2d.py:begin=imagenet --workdir=runs/table7_vq2d
"""

from configs import tables


def get_config(arg=None):
    return tables.table7("vq2d", arg)
