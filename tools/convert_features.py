"""Feature nets of the perceptual loss and of metrics: torchvision's weights -> one .npz that a config can name.

    python tools/convert_features.py --net=resnet50 --weights=resnet50-11ad3fa6.pth --out=weights/resnet50.npz

`--weights` is a state dict by torch.save (.pth, .pt, .bin; needs torch) or a .safetensors file. In a config: `objective.perceptual = dict(target="magvid.models.resnet:ResNet50", weights_file="weights/resnet50.npz")`.
"""

import pathlib
import re
import sys
from collections.abc import Mapping

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from magvid.flags import Flag, Program, guarded, leave, parse, program_help
from magvid.models.resnet import ResNet50
from magvid.models.vgg import STAGES, VGG16
from magvid.types import UserError
from tools.rules import Rule, check, rename
from tools.weights import open_weights

NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}


def _norms(source: str, target: str) -> list[Rule]:
    return [(rf"{source}\.{theirs}", rf"{target}/{ours}") for theirs, ours in NORM.items()]


RESNET50 = [
    (r"conv1\.weight", r"conv1/conv/kernel"),
    *_norms(r"bn1", r"bn1"),
    (r"layer(\d)\.(\d)\.conv(\d)\.weight", r"stage\1_\2/conv\3/conv/kernel"),
    *_norms(r"layer(\d)\.(\d)\.bn(\d)", r"stage\1_\2/bn\3"),
    (r"layer(\d)\.(\d)\.downsample\.0\.weight", r"stage\1_\2/skip/conv/kernel"),
    *_norms(r"layer(\d)\.(\d)\.downsample\.1", r"stage\1_\2/bn_skip"),
    (r"fc\.weight", r"head/kernel"),
    (r"fc\.bias", r"head/bias"),
]


def _vgg16() -> list[Rule]:
    rules, layer = [], 0  # torchvision counts convolutions, ReLUs and poolings alike
    for stage, (_, convolutions) in enumerate(STAGES, 1):
        for i in range(1, convolutions + 1):
            for theirs, ours in (("weight", "kernel"), ("bias", "bias")):
                rules.append((rf"features\.{layer}\.{theirs}", rf"conv{stage}_{i}/conv/{ours}"))
            layer += 2
        layer += 1
    return rules


# net: (module, rules, source names that it has no use for)
NETS = {
    "resnet50": (ResNet50(), RESNET50, r".*num_batches_tracked"),
    "vgg16": (VGG16(), _vgg16(), r"classifier\..*"),
}

PROGRAM = Program(
    "python tools/convert_features.py",
    "Convert torchvision's ResNet-50 or VGG-16 for the perceptual loss.",
    [
        Flag("net", "str", None, "|".join(NETS), "which network the weights are of"),
        Flag("weights", "str", None, "FILE", "a state dict (.pth, .pt, .bin) or a .safetensors file"),
        Flag("out", "str", None, "FILE.npz", "where to write"),
    ],
    ["--net=resnet50 --weights=resnet50-11ad3fa6.pth --out=weights/resnet50.npz"],
)


def convert(net: str, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """torchvision's names and arrays -> ours; ValueError names what is missing, unknown or of a wrong shape."""
    module, rules, unused = NETS[net]
    found = rename({n: a for n, a in weights.items() if not re.fullmatch(unused, n)}, rules)
    found = {n: np.ascontiguousarray(_channels_last(a), np.float32) for n, a in found.items()}
    shapes = flatten_dict(jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 1, 224, 224, 3)))["params"], sep="/")
    check(found, {name: x.shape for name, x in shapes.items()})
    return found


def _channels_last(array: np.ndarray) -> np.ndarray:
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def main(argv: list[str]) -> None:
    if {"--help", "-h"} & set(argv):
        print(program_help(PROGRAM))
        return
    flags = parse(PROGRAM, argv, "net weights out")
    if flags.net not in NETS:
        raise UserError(f"--net={flags.net} is none of {', '.join(NETS)}")
    out = pathlib.Path(flags.out)
    if out.suffix != ".npz":
        raise UserError(f"--out={out} should end in .npz")
    arrays = convert(flags.net, {n: np.asarray(x) for n, x in open_weights(flags.weights).weights.items()})
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(out, **arrays)
    print(f"{out}: {len(arrays)} arrays, {sum(a.size for a in arrays.values()):,} numbers")


if __name__ == "__main__":
    leave(guarded("convert_features", sys.argv[1:], main))
