"""Table 5: COMMIT with all three losses; arguments in configs/tables.py.

    magvid train --config=configs/table5_commit.py:size=B,tasks=FP --workdir=runs/table5_commit-FP
"""

from configs import tables


def get_config(arg=None):
    return tables.table5("commit", arg)
