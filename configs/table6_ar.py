"""Table 6: token by token, by a causal transformer of the same size; arguments in configs/tables.py.

    magvid train --config=configs/table6_ar.py:size=B --workdir=runs/table6_ar
"""

from configs import tables


def get_config(arg=None):
    return tables.table6("ar", arg)
