"""Table 6: MaskGIT's latent masking and decoding on the tokens of a 3D-VQ; arguments in configs/tables.py.

    magvid train --config=configs/table6_maskgit_3d.py:size=B --workdir=runs/table6_maskgit_3d
"""

from configs import tables


def get_config(arg=None):
    return tables.table6("maskgit_3d", arg)
