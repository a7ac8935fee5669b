"""AID on BridgeData V2 (Walke et al., CoRL 2023).

    magvid train --config=configs/aid_bridge.py --workdir=runs/aid-bridge

data=FOLDER is the archive (docs/aid.md). All other arguments: configs/aid.py.
"""

from configs import aid


def clips(split, t, h, w):
    return dict(target="magvid.data.bridge:Bridge", split=dict(train="train", test="validation")[split], frames=t, height=h, width=w, crop="centre")


def get_config(arg=None):
    return aid.published(arg, source=clips, given=1, frames=16, steps=50_000, data="data/bridge")
