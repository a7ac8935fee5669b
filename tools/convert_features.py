"""Feature nets of the perceptual loss and of metrics: published weights -> one .npz that a config can name.

    python tools/convert_features.py --net=resnet50 --weights=resnet50-11ad3fa6.pth --out=weights/resnet50.npz
    python tools/convert_features.py --net=i3d --weights=i3d_pretrained_400.pt --out=weights/i3d.npz
    python tools/convert_features.py --net=c3d --weights=conv3d_deepnetA_ucf.npz --mean=mean2.npz --out=weights/c3d.npz
    python tools/convert_features.py --net=lpips-alex --weights=alexnet-owt-7be5be79.pth --lin=lpips/weights/v0.1/alex.pth --out=weights/lpips.npz
    python tools/convert_features.py --net=dino --weights=dino_deitsmall16_pretrain.pth --out=weights/dino.npz

resnet50, vgg16     torchvision's, for the perceptual loss: `objective.perceptual = dict(target="magvid.models.resnet:ResNet50", weights_file="weights/resnet50.npz")`
i3d                 for FVD and KVD: pytorch-i3d's names (VideoGPT's i3d_pretrained_400.pt), or the variables of DeepMind's i3d-kinetics-400 in a .npz file
c3d                 for the Inception Score: TGANv2's, whose mean clip is a file of its own
lpips-alex, -squeeze, -vgg
                    for LPIPS: torchvision's network, and the learned weights of its features out of the package lpips
dino                for the fidelity of subjects: ViT-S/16, facebookresearch/dino's or the transformers library's (facebook/dino-vits16)

`--weights` is a state dict by torch.save (.pth, .pt, .bin; needs torch), a .safetensors or an .npz file.
"""

import pathlib
import re
import sys
from collections.abc import Callable, Mapping
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from magvid.flags import Flag, Program, guarded, leave, parse, program_help
from magvid.models.c3d import C3D
from magvid.models.dino import DINO
from magvid.models.i3d import I3D
from magvid.models.lpips import LPIPS
from magvid.models.resnet import ResNet50
from magvid.models.vgg import STAGES, VGG16
from magvid.runs import read_npz
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


def _i3d() -> list[Rule]:
    branches = {"0": "Branch_0_Conv3d_0a_1x1", "1a": "Branch_1_Conv3d_0a_1x1", "1b": "Branch_1_Conv3d_0b_3x3"}
    branches |= {"2a": "Branch_2_Conv3d_0a_1x1", "2b": "Branch_2_Conv3d_0b_3x3", "3b": "Branch_3_Conv3d_0b_1x1"}
    units = {r"(Conv3d_\w+)": r"\1"} | {rf"(Mixed_\w+)\.b{theirs}": rf"\1/{ours}" for theirs, ours in branches.items()}
    rules = [(r"logits\.conv3d\.weight", "logits/kernel"), (r"logits\.conv3d\.bias", "logits/bias")]
    for theirs, ours in units.items():
        parts = {r"conv3d\.weight": "conv/kernel", r"bn\.bias": "bias", r"bn\.running_mean": "mean", r"bn\.running_var": "var"}
        rules += [(rf"{theirs}\.{a}", rf"{ours}/{b}") for a, b in parts.items()]
    return rules


# DeepMind's variables -> pytorch-i3d's names; of one convolution the published graph has another name than its siblings
HUB = [
    (r".*Mixed_5b/Branch_2/Conv3d_0a_3x3/(.*)", r"Mixed_5b.b2b.\1"),
    *((rf".*(Mixed_\w\w)/Branch_{n}/Conv3d_0([ab])_\dx\d/(.*)", rf"\1.b{n}\2.\3") for n in "12"),
    (r".*(Mixed_\w\w)/Branch_0/Conv3d_0a_1x1/(.*)", r"\1.b0.\2"),
    (r".*(Mixed_\w\w)/Branch_3/Conv3d_0b_1x1/(.*)", r"\1.b3b.\2"),
    (r".*Logits/Conv3d_0c_1x1/(.*)", r"logits.\1"),
    (r".*(Conv3d_\d\w_\dx\d)/(.*)", r"\1.\2"),
]
HUB_ENDS = {"conv_3d/w": "conv3d.weight", "conv_3d/b": "conv3d.bias", "batch_norm/beta": "bn.bias"}
HUB_ENDS |= {"batch_norm/moving_mean": "bn.running_mean", "batch_norm/moving_variance": "bn.running_var"}


def _one_i3d(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """pytorch-i3d's names and arrays, without gains, and with logits by a matrix."""
    if any("/conv_3d/w" in name for name in weights):
        found = {}
        for name, x in weights.items():
            name = name.removesuffix(":0")
            unit = next((re.sub(theirs, ours, name) for theirs, ours in HUB if re.fullmatch(theirs, name)), name)
            for theirs, ours in HUB_ENDS.items():
                unit = unit.replace(theirs, ours)
            found[unit] = x.transpose(4, 3, 0, 1, 2) if name.endswith("conv_3d/w") else x.reshape(-1)
        weights = found
    weights = dict(weights)
    for name in [n for n in weights if n.endswith(".bn.weight")]:
        gain, unit = weights.pop(name), name.removesuffix(".bn.weight")
        for part in ("conv3d.weight", "bn.running_mean"):  # g (k x - m) = (g k) x - g m
            if (key := f"{unit}.{part}") in weights:
                weights[key] = weights[key] * gain.reshape(-1, *[1] * (weights[key].ndim - 1))
    if (key := "logits.conv3d.weight") in weights and weights[key].shape[2:] == (1, 1, 1):
        weights[key] = weights[key][..., 0, 0, 0]
    return weights


BOTH = (("weight", "kernel"), ("bias", "bias"))
LIN = [(r"lin(\d)\.model\.1\.weight", r"lin\1")]
ALEX = [(rf"features\.{layer}\.{theirs}", f"net/conv{i}/{ours}") for i, layer in enumerate((0, 3, 6, 8, 10), 1) for theirs, ours in BOTH]
SQUEEZE = [(rf"features\.0\.{theirs}", f"net/conv1/{ours}") for theirs, ours in BOTH]
SQUEEZE += [(rf"features\.{layer}\.(\w+)\.{theirs}", rf"net/fire{i}/\1/{ours}") for i, layer in enumerate((3, 4, 6, 7, 9, 10, 11, 12), 2) for theirs, ours in BOTH]


def _lin(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The lin weights as vectors."""
    return {n: x.reshape(-1) if re.fullmatch(LIN[0][0], n) else x for n, x in weights.items()}


def _dino() -> list[Rule]:
    """Of facebookresearch/dino's names, with queries, keys and values apart, and of the transformers library's."""
    parts = {"class_embedding": r"(?:embeddings\.)?cls_token", "position_embedding": r"pos_embed|embeddings\.position_embeddings"}
    patches = r"(?:patch_embed\.proj|embeddings\.patch_embeddings\.projection)"
    parts |= {"patch_embedding/kernel": rf"{patches}\.weight", "patch_bias": rf"{patches}\.bias"}
    layers = {f"attn/{name[0]}_proj": rf"attn\.{name}|attention\.attention\.{name}" for name in ("query", "key", "value")}
    layers |= {"attn/out_proj": r"attn\.proj|attention\.output\.dense", "fc1": r"mlp\.fc1|intermediate\.dense", "fc2": r"mlp\.fc2|output\.dense"}
    norms, gains = {"norm1": r"norm1|layernorm_before", "norm2": r"norm2|layernorm_after"}, (("weight", "scale"), ("bias", "bias"))
    rules = [(theirs, ours) for ours, theirs in parts.items()] + [(rf"(?:layer)?norm\.{a}", f"norm/{b}") for a, b in gains]
    for names, ends in ((layers, BOTH), (norms, gains)):
        rules += [(rf"(?:blocks|encoder\.layer)\.(\d+)\.(?:{theirs})\.{a}", rf"blocks_\1/{ours}/{b}") for ours, theirs in names.items() for a, b in ends]
    return rules


def _one_dino(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Queries, keys and values apart, and vectors for the class and the places."""
    found = {}
    for name, x in weights.items():
        if ".attn.qkv." in name:
            found |= {name.replace("qkv", part): third for part, third in zip(("query", "key", "value"), np.split(x, 3), strict=True)}
        elif x.shape[:1] == (1,) and x.ndim == 3:
            found[name] = x.reshape(-1) if name.endswith("cls_token") else x[0]
        else:
            found[name] = x
    return found


C3D_RULES = [(r"(\w+)/W", r"\1/kernel"), (r"(\w+)/b", r"\1/bias"), (r"mean", r"mean")]


def _mean_clip(mean: np.ndarray) -> np.ndarray:
    """Of TGANv2's mean2.npz, blue first, the part that its C3D subtracts (16 112 112 3): rows and columns 8 to 119 (TGAN took 112 of the 128 columns
    in the middle).
    """
    if mean.size != 3 * 16 * 128 * 171:
        raise ValueError(f"the mean clip should be of 3 x 16 x 128 x 171 numbers, got the shape {mean.shape}")
    return mean.reshape(3, 16, 128, 171)[:, :, 8 : 8 + 112, 8 : 8 + 112].transpose(1, 2, 3, 0)


class Net(NamedTuple):
    """`reads`: shapes of what the module reads; `unused`: source names that it has no use for; `before`: what is done with all arrays before the rules."""

    module: nn.Module
    reads: tuple[tuple[int, ...], ...]
    rules: list[Rule]
    unused: str = ""
    before: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]] = dict


PICTURE = (1, 1, 224, 224, 3)
NETS = {
    "resnet50": Net(ResNet50(), (PICTURE,), RESNET50, r".*num_batches_tracked"),
    "vgg16": Net(VGG16(), (PICTURE,), _vgg16(), r"classifier\..*"),
    "i3d": Net(I3D(), ((1, 16, 224, 224, 3),), _i3d(), r".*num_batches_tracked", _one_i3d),
    "c3d": Net(C3D(), ((1, 16, 112, 112, 3),), C3D_RULES),
    "lpips-alex": Net(LPIPS("alex"), (PICTURE, PICTURE), ALEX + LIN, r"classifier\..*", _lin),
    "lpips-squeeze": Net(LPIPS("squeeze"), (PICTURE, PICTURE), SQUEEZE + LIN, r"classifier\..*", _lin),
    "lpips-vgg": Net(LPIPS("vgg"), (PICTURE, PICTURE), [(a, f"net/{b}") for a, b in _vgg16()] + LIN, r"classifier\..*", _lin),
    "dino": Net(DINO(), ((1, 224, 224, 3),), _dino(), r"pooler\..*", _one_dino),
}

PROGRAM = Program(
    "python tools/convert_features.py",
    "Convert ResNet-50 or VGG-16 for the perceptual loss, I3D for FVD, C3D for the Inception Score, networks of LPIPS, DINO.",
    [
        Flag("net", "str", None, "|".join(NETS), "which network the weights are of"),
        Flag("weights", "str", None, "FILE", "a state dict (.pth, .pt, .bin), a .safetensors or an .npz file"),
        Flag("mean", "str", None, "FILE.npz", "of c3d: the file of its mean clip"),
        Flag("lin", "str", None, "FILE.pth", "of lpips: the learned weights of the features, in the package lpips under weights/v0.1"),
        Flag("out", "str", None, "FILE.npz", "where to write"),
    ],
    ["--net=resnet50 --weights=resnet50-11ad3fa6.pth --out=weights/resnet50.npz", "--net=i3d --weights=i3d_pretrained_400.pt --out=weights/i3d.npz"],
)


def convert(net: str, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Published names and arrays -> ours; ValueError names what is missing, unknown or of a wrong shape."""
    module, reads, rules, unused, before = NETS[net]
    found = rename(before({n: a for n, a in weights.items() if not re.fullmatch(unused, n)}), rules)
    found = {n: np.ascontiguousarray(_channels_last(x) if n.endswith("kernel") else x, np.float32) for n, x in found.items()}
    shapes = flatten_dict(jax.eval_shape(module.init, jax.random.key(0), *map(jnp.zeros, reads))["params"], sep="/")
    check(found, {name: x.shape for name, x in shapes.items()})
    return found


def _channels_last(array: np.ndarray) -> np.ndarray:
    return array.transpose(*range(2, array.ndim), 1, 0) if array.ndim > 1 else array


def read(file: str) -> dict[str, np.ndarray]:
    path = pathlib.Path(file).expanduser()
    if path.suffix != ".npz" or not path.is_file():
        return {n: np.asarray(x) for n, x in open_weights(file).weights.items()}
    try:
        return read_npz(path)
    except ValueError as error:
        raise UserError(f"{file} is no .npz file of arrays ({error})") from None


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
    weights = read(flags.weights)
    if (flags.net == "c3d") != bool(flags.mean):
        raise UserError("--mean=FILE.npz is the mean clip of c3d: " + ("give it" if flags.net == "c3d" else f"{flags.net} has none"))
    if flags.net.startswith("lpips") != bool(flags.lin):
        raise UserError("--lin=FILE.pth has the learned weights of LPIPS: " + (f"{flags.net} has none" if flags.lin else "give it"))
    if flags.lin:
        weights |= read(flags.lin)
    if flags.mean:
        means = read(flags.mean)
        if "mean" not in means:
            raise UserError(f"--mean={flags.mean} has no array called mean, but {', '.join(means)}")
        weights["mean"] = _mean_clip(means["mean"])
    arrays = convert(flags.net, weights)
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(out, **arrays)
    print(f"{out}: {len(arrays)} arrays, {sum(a.size for a in arrays.values()):,} numbers")


if __name__ == "__main__":
    leave(guarded("convert_features", sys.argv[1:], main))
