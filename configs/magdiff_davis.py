"""MagDiff (Zhao et al., ECCV 2024), evaluated on editing the videos of DAVIS (Perazzi et al., CVPR 2016).

    magvid evaluate --run=runs/magdiff --data=configs/magdiff_davis.py:test=FOLDER

test=FOLDER is the archive (2017, 480p; captions.jsonl in it says what is seen); data=FOLDER what is trained on. All other arguments: configs/magdiff.py.
"""

from configs import magdiff


def clips(t, h, w, path):
    # about 12 frames per second of some 24: with 8, as in training, the shortest of the 30 videos would be too short
    return dict(target="magvid.data.davis:Davis", path=path, split="validation", frames=t, height=h, width=w, stride=2, crop="centre")


def get_config(arg=None):
    return magdiff.published(arg, clips, "data/davis", editing=1.0)
