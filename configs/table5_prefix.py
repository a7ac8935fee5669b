"""Table 5: condition tokens before the grid; arguments in configs/tables.py.

    magvid train --config=configs/table5_prefix.py:size=B,tasks=FP --workdir=runs/table5_prefix-FP
"""

from configs import tables


def get_config(arg=None):
    return tables.table5("prefix", arg)
