"""COMMIT on BAIR robot pushing as published; arguments and sources in configs/magvit.py.

    magvid train --config=configs/commit_bair.py:size=B --workdir=runs/commit_bair-B
"""

from configs import magvit


def get_config(arg=None):
    return magvit.commit("bair", arg)
