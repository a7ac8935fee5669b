"""AID on Something-Something V2 (Goyal et al., ICCV 2017).

    magvid train --config=configs/aid_ssv2.py --workdir=runs/aid-ssv2

data=FOLDER is the archive (docs/aid.md). All other arguments: configs/aid.py.
"""

from configs import aid


def clips(split, t, h, w):
    return dict(target="magvid.data.ssv2:SSV2", split=dict(train="train", test="validation")[split], frames=t, height=h, width=w, crop="centre")


def get_config(arg=None):
    return aid.published(arg, source=clips, given=2, frames=12, steps=100_000, data="data/ssv2")
