"""MAVIN on the tigers of TigDog (Del Pero et al., CVPR 2015): transitions between actions, and with part=action the actions.

    magvid train --config=configs/mavin_tiger.py --workdir=runs/mavin-tiger
    magvid train --config=configs/mavin_tiger.py:part=action,data=clips,folder=1 --workdir=runs/mavin-tiger-action

data=FOLDER is the archive's behaviorDiscovery2.0. All other arguments: configs/mavin.py.
"""

from configs import mavin


def tigers(split, t, h, w):
    size = dict(frames=t, height=h, width=w, stride=2, keep_aspect=False)  # as of any video of 12 frames per second or more
    return dict(target="magvid.data.tigdog:TigDog", animal="tiger", split="validation" if split == "test" else split, **size)


def get_config(arg=None):
    return mavin.published(
        arg,
        source=tigers,
        text="tiger movement",
        actions=dict(size=256, peak=5e-6, steps=40000),
        data="data/behaviorDiscovery2.0",
    )
