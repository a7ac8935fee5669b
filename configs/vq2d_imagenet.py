"""2D-VQ on ImageNet, which the tokenizers of videos begin as; arguments and sources in configs/magvit.py.

    magvid train --config=configs/vq2d_imagenet.py:size=B --workdir=runs/vq2d_imagenet-B
    magvid train --config=configs/vq2d_imagenet.py:size=B,pixels=64 --workdir=runs/vq2d_imagenet_64-B

source=folder reads images from data/imagenet/train and /validation. Published are the model, the losses, batch,
optimizer and warm-up (those of the official 2D configs), not for how many epochs it was trained: 100 here.
"""

from configs import magvit


def get_config(arg=None):
    return magvit.vq2d_imagenet(arg)
