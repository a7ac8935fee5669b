"""Table 6: MaskGIT on the tokens of a 2D-VQ; arguments in configs/tables.py.

    magvid train --config=configs/table6_maskgit_2d.py:size=B --workdir=runs/table6_maskgit_2d
"""

from configs import tables


def get_config(arg=None):
    return tables.table6("maskgit_2d", arg)
