"""Table 5: COMMIT with L_mask and L_recons; arguments in configs/tables.py.

    magvid train --config=configs/table5_commit_mask_recons.py:size=B,tasks=FP --workdir=runs/table5_commit_mask_recons-FP
"""

from configs import tables


def get_config(arg=None):
    return tables.table5("commit_mask_recons", arg)
