"""AID on any folder of videos, each of which shows one action from its beginning to its end.

    python tools/predict_states.py --data=videos --model=llava-hf/llava-1.5-7b-hf --out=videos/states.json
    magvid train --config=configs/aid_videos.py:data=videos --workdir=runs/aid-videos

captions.jsonl in the folder holds the instructions, {"file": "cats/a.mp4", "caption": "pet the cat"} in each line; videos without one are
left out. All other arguments: configs/aid.py.
"""

from configs import aid


def clips(split, t, h, w):
    split = dict(train="train", test="validation")[split]
    return dict(target="magvid.data.folder:VideoFolder", split=split, frames=t, height=h, width=w, spread=True, crop="centre", captioned=True)


def get_config(arg=None):
    return aid.published(arg, source=clips, given=1, frames=16, steps=50_000, data="videos", key="caption")
