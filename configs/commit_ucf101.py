"""COMMIT on UCF-101 as published; arguments and sources in configs/magvit.py.

    magvid train --config=configs/commit_ucf101.py:size=B --workdir=runs/commit_ucf101-B
"""

from configs import magvit


def get_config(arg=None):
    return magvit.commit("ucf101", arg)
