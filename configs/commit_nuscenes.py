"""COMMIT on nuScenes, front camera as published; arguments and sources in configs/magvit.py.

    magvid train --config=configs/commit_nuscenes.py:size=B --workdir=runs/commit_nuscenes-B
"""

from configs import magvit


def get_config(arg=None):
    return magvit.commit("nuscenes", arg)
