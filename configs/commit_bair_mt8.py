"""COMMIT for eight tasks at once on BAIR robot pushing as published (table 3); arguments in configs/magvit.py.

    magvid train --config=configs/commit_bair_mt8.py:size=B --workdir=runs/commit_bair_mt8-B
"""

from configs import magvit

TOKENIZER = "vq3d_bair"


def get_config(arg=None):
    return magvit.commit("bair", arg, TOKENIZER, magvit.EIGHT, (1200, 1600))
