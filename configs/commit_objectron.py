"""COMMIT on Objectron as published; arguments and sources in configs/magvit.py.

    magvid train --config=configs/commit_objectron.py:size=B --workdir=runs/commit_objectron-B
"""

from configs import magvit


def get_config(arg=None):
    return magvit.commit("objectron", arg)
