"""COMMIT on Something-Something-v2 as published; arguments and sources in configs/magvit.py.

    magvid train --config=configs/commit_ssv2.py:size=B --workdir=runs/commit_ssv2-B
"""

from configs import magvit


def get_config(arg=None):
    return magvit.commit("ssv2", arg)
