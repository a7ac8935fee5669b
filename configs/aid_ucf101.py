"""AID on UCF-101 (Soomro et al., 2012).

    magvid train --config=configs/aid_ucf101.py --workdir=runs/aid-ucf101

data=FOLDER is the archive (docs/aid.md). All other arguments: configs/aid.py.
"""

from configs import aid


def clips(split, t, h, w):
    return dict(target="magvid.data.ucf101:UCF101", fold=1, split=dict(train="train", test="test")[split], frames=t, height=h, width=w, crop="centre")


def get_config(arg=None):
    return aid.published(arg, source=clips, given=1, frames=16, steps=50_000, data="data/ucf101")
