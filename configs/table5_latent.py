"""Table 5: MaskGIT's latent masking; arguments in configs/tables.py.

    magvid train --config=configs/table5_latent.py:size=B,tasks=FP --workdir=runs/table5_latent-FP
"""

from configs import tables


def get_config(arg=None):
    return tables.table5("latent", arg)
