"""COMMIT on Kinetics-600 as published: five frames given, decoded with the uniform schedule at temperature 7.5; arguments
and sources in configs/magvit.py.

    magvid train --config=configs/commit_k600.py:size=B --workdir=runs/commit_k600-B
"""

from configs import magvit


def get_config(arg=None):
    return magvit.commit("k600", arg, decoding=dict(schedule="uniform", temperature=7.5))
