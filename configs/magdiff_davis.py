"""MagDiff (Zhao et al., ECCV 2024), evaluated on editing the videos of DAVIS (Perazzi et al., CVPR 2016).

    magvid train --config=configs/magdiff_davis.py --workdir=runs/magdiff

test=FOLDER is the archive (2017, 480p; captions.jsonl in it says what is seen); data=FOLDER what is trained on. All other arguments: configs/magdiff.py.
"""

from configs import magdiff


def clips(t, h, w, path):
    return dict(target="magvid.data.davis:Davis", path=path, split="validation", frames=t, height=h, width=w, crop="centre")


def get_config(arg=None):
    return magdiff.published(arg, clips, "data/davis", editing=1.0)
