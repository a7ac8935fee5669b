"""COMMIT on a folder of web videos as published; arguments and sources in configs/magvit.py.

    magvid train --config=configs/commit_web.py:size=B --workdir=runs/commit_web-B
"""

from configs import magvit


def get_config(arg=None):
    return magvit.commit("web", arg)
