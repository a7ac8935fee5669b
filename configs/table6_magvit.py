"""Table 6: COMMIT on the tokens of a 3D-VQ; arguments in configs/tables.py.

    magvid train --config=configs/table6_magvit.py:size=B --workdir=runs/table6_magvit
"""

from configs import tables


def get_config(arg=None):
    return tables.table6("magvit", arg)
