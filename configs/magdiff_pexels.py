"""MagDiff (Zhao et al., ECCV 2024): trained on videos with masks and texts, and evaluated on held-out ones of them.

    magvid train --config=configs/magdiff_pexels.py --workdir=runs/magdiff
    magvid evaluate --run=runs/magdiff

data=FOLDER holds the videos, captions.jsonl and masks/ (see magvid/data/folder.py); the authors' are of Pexels, and were not published. All other arguments: configs/magdiff.py.
"""

from configs import magdiff


def get_config(arg=None):
    return magdiff.published(arg)
