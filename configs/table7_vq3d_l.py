"""Table 7: 3D-VQ of size L; arguments in configs/magvit.py, but for size.

    magvid train --config=configs/table7_vq3d_l.py:inflate=central --workdir=runs/table7_vq3d_l
"""

from configs import tables


def get_config(arg=None):
    return tables.table7("vq3d_l", arg)
