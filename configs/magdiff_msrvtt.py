"""MagDiff (Zhao et al., ECCV 2024), evaluated on MSR-VTT (Xu et al., CVPR 2016) without training on it.

    magvid evaluate --run=runs/magdiff --data=configs/magdiff_msrvtt.py:test=FOLDER

test=FOLDER is the archive, with masks/ in it; data=FOLDER what is trained on. All other arguments: configs/magdiff.py.
"""

from configs import magdiff


def clips(t, h, w, path):
    return dict(target="magvid.data.msrvtt:MSRVTT", path=path, masks=f"{path}/masks", split="test", frames=t, height=h, width=w, fps=8, crop="centre")


def get_config(arg=None):
    return magdiff.published(arg, clips, "data/msrvtt")
