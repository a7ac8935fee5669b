"""AID on EPIC-Kitchens-100 (Damen et al., IJCV 2022).

    magvid train --config=configs/aid_epic.py --workdir=runs/aid-epic

data=FOLDER is the archive (docs/aid.md). All other arguments: configs/aid.py.
"""

from configs import aid


def clips(split, t, h, w):
    return dict(target="magvid.data.epic:EpicKitchens", split=dict(train="train", test="validation")[split], frames=t, height=h, width=w, crop="centre")


def get_config(arg=None):
    return aid.published(arg, source=clips, given=1, frames=16, steps=50_000, data="data/epic")
