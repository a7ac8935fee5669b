"""Table 5: COMMIT with L_mask alone; arguments in configs/tables.py.

    magvid train --config=configs/table5_commit_mask.py:size=B,tasks=FP --workdir=runs/table5_commit_mask-FP
"""

from configs import tables


def get_config(arg=None):
    return tables.table5("commit_mask", arg)
