"""MagDiff (Zhao et al., ECCV 2024), evaluated on UCF-101 (Soomro et al., 2012) without training on it: class names as texts.

    magvid evaluate --run=runs/magdiff --data=configs/magdiff_ucf101.py:test=FOLDER

test=FOLDER is the archive, with masks/ in it; data=FOLDER what is trained on. All other arguments: configs/magdiff.py.
"""

from configs import magdiff


def clips(t, h, w, path):
    as_trained = dict(fps=8, spread=False)
    return dict(target="magvid.data.ucf101:UCF101", path=path, masks=f"{path}/masks", split="test", frames=t, height=h, width=w, crop="centre", **as_trained)


def get_config(arg=None):
    return magdiff.published(arg, clips, "data/ucf101")
