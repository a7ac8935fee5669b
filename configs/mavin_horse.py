"""MAVIN on the horses of Animal Kingdom (Ng et al., CVPR 2022): transitions between actions, and with part=action the actions.

    magvid train --config=configs/mavin_horse.py --workdir=runs/mavin-horse
    magvid train --config=configs/mavin_horse.py:part=action,data=clips,folder=1 --workdir=runs/mavin-horse-action
    magvid train --config=configs/mavin_horse.py:noising=bert --workdir=runs/mavin-horse-bert

data=FOLDER is the archive's action_recognition; with folder=1 any folder of clips, a sub-folder for each action, as the paper's few clips per
action are. All other arguments: configs/mavin.py.
"""

from configs import mavin


def horses(split, t, h, w):
    size = dict(frames=t, height=h, width=w, fps=8, most_stride=2, keep_aspect=False)
    return dict(target="magvid.data.animal_kingdom:AnimalKingdom", animal="Horse", split=split, **size)


def get_config(arg=None):
    return mavin.published(
        arg,
        source=horses,
        text="horse movement",
        actions=dict(size=384, peak=1e-5, steps=30000),
        data="data/animal_kingdom/action_recognition",
    )
