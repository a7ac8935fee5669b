"""torchvision's networks converted to ours give the same features; a wrong file is named."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from helpers import nest, relative_error
from magvid import runs
from magvid.models.c3d import C3D
from magvid.models.dino import DINO
from magvid.models.i3d import I3D
from magvid.models.lpips import LPIPS
from magvid.models.resnet import MEAN, STD, ResNet50
from magvid.models.vgg import VGG16
from magvid.types import UserError
from tools import convert_features

ROOT = Path(__file__).parent.parent
VIDEO = np.random.default_rng(0).random((2, 3, 64, 96, 3)).astype(np.float32)


def torch_net(name: str):
    """torchvision's network with random weights and statistics, and its input for VIDEO."""
    from helpers_torch import torch, torchvision

    torch.manual_seed(0)
    net = getattr(torchvision.models, name)(weights=None).eval()
    for key, value in net.state_dict().items():
        if key.endswith(("running_mean", "running_var")) or (value.ndim == 1 and "num_batches" not in key):
            value.copy_(0.1 * torch.randn(value.shape) + (1 if key.endswith(("running_var", "weight")) else 0))
    frames = (VIDEO.reshape(-1, 64, 96, 3) - np.float32(MEAN)) / np.float32(STD)
    return net, torch.from_numpy(frames.transpose(0, 3, 1, 2).copy())


def arrays(net) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in net.state_dict().items()}


@pytest.mark.full
@pytest.mark.parametrize("logits", [True, False])
def test_resnet50_equals_torchvisions(logits):
    import torch

    net, frames = torch_net("resnet50")
    params = nest(convert_features.convert("resnet50", arrays(net)))
    resized = torch.nn.functional.interpolate(frames, (224, 224), mode="bilinear", align_corners=False)
    with torch.no_grad():
        trunk = torch.nn.Sequential(*list(net.children())[:-2])
        expected = net(resized) if logits else trunk(resized).permute(0, 2, 3, 1)
    found = jax.jit(ResNet50(logits=logits).apply)({"params": params}, VIDEO)
    assert relative_error(found, expected.numpy()) < 1e-4


@pytest.mark.full
def test_vgg16_equals_torchvisions():
    import torch

    net, frames = torch_net("vgg16")
    params = nest(convert_features.convert("vgg16", arrays(net)))
    found = jax.jit(VGG16().apply)({"params": params}, VIDEO)
    x, expected = frames, []
    with torch.no_grad():
        for i, layer in enumerate(net.features):
            x = layer(x)
            if i in (3, 8, 15, 22, 29):  # the last ReLU of each stage
                expected.append(x.permute(0, 2, 3, 1).numpy())
    assert len(found) == 5 and all(relative_error(a, b) < 1e-4 for a, b in zip(found, expected, strict=True))


@pytest.mark.full
def test_the_command_writes_what_a_config_can_name(tmp_path):
    import torch
    from safetensors.numpy import save_file

    net, _ = torch_net("resnet50")
    torch.save(net.state_dict(), tmp_path / "net.pth")
    save_file({k: np.ascontiguousarray(v) for k, v in arrays(net).items()}, tmp_path / "net.safetensors")
    found = {}
    for suffix in ("pth", "safetensors"):
        command = [sys.executable, str(ROOT / "tools" / "convert_features.py"), "--net=resnet50"]
        command += [f"--weights={tmp_path / f'net.{suffix}'}", f"--out={tmp_path / suffix}.npz"]
        subprocess.run(command, check=True, cwd=tmp_path)
        config = dict(objective=dict(perceptual=dict(target="a:B", weights_file=str(tmp_path / f"{suffix}.npz"))))
        resolved, frozen, hashes = runs.resolve(config)
        assert resolved["objective"]["perceptual"] == dict(target="a:B") and len(hashes["perceptual"]) == 12
        found[suffix] = flatten_dict(frozen["perceptual"], sep="/")
    assert found["pth"].keys() == found["safetensors"].keys()
    np.testing.assert_array_equal(found["pth"]["head/kernel"], net.fc.weight.detach().numpy().T)
    bad = arrays(net)
    extra = dict(bad, surplus=np.zeros(3, np.float32))
    missing = {k: v for k, v in bad.items() if k != "layer3.2.conv1.weight"}
    wrong = dict(bad, **{"fc.bias": np.zeros(7, np.float32)})
    for weights, message in ((extra, "surplus"), (missing, "stage3_2/conv1/conv/kernel is missing"), (wrong, r"head/bias is \(7,\)")):
        with pytest.raises(ValueError, match=message):
            convert_features.convert("resnet50", weights)


def test_a_missing_or_foreign_weight_file_is_named(tmp_path):
    config = lambda path: dict(objective=dict(perceptual=dict(target="a:B", weights_file=str(path))))
    with pytest.raises(UserError, match="objective.perceptual.weights_file: there is no file .*tools/convert_features.py"):
        runs.resolve(config(tmp_path / "gone.npz"))
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(UserError, match="is not a file of converted weights"):
        runs.resolve(config(tmp_path / "text.npz"))
    with pytest.raises(UserError, match="there is no file"):
        convert_features.main(["--net=vgg16", f"--weights={tmp_path}/gone.pth", f"--out={tmp_path}/a.npz"])


def test_paths_of_weight_files_travel_with_the_config(tmp_path):
    spec = dict(objective=dict(perceptual=dict(target="a:B", weights_file="weights/a.npz")))
    anchored = runs.anchored(spec, tmp_path)
    assert anchored["objective"]["perceptual"]["weights_file"] == str(tmp_path / "weights" / "a.npz")
    relative = runs.relative(anchored, tmp_path / "runs" / "x")
    assert relative["objective"]["perceptual"]["weights_file"] == "../../weights/a.npz"


def test_full_sizes():
    """torchvision: 25,557,032 parameters and 53,120 statistics; VGG-16 has 14,714,688 in its convolutions."""
    count = lambda module: sum(
        x.size for x in jax.tree.leaves(jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 1, 224, 224, 3))))
    )
    assert count(ResNet50()) == 25_557_032 + 53_120 and count(VGG16()) == 14_714_688
    with pytest.raises(ValueError, match="frames of 8x96 are too small"):
        jax.eval_shape(VGG16().init, jax.random.key(0), jnp.zeros((1, 1, 8, 96, 3)))


# LPIPS and DINO ------------------------------------------------------------------------------------------------------

# of torchvision's `features`: after which layers the reference implementation (richzhang/PerceptualSimilarity) reads them, and how many there are
TAPS = {
    "alex": ("alexnet", {1: 64, 4: 192, 7: 384, 9: 256, 11: 256}),
    "squeeze": ("squeezenet1_1", {1: 64, 4: 128, 7: 256, 9: 384, 10: 384, 11: 512, 12: 512}),
    "vgg": ("vgg16", {3: 64, 8: 128, 15: 256, 22: 512, 29: 512}),
}


@pytest.mark.full
@pytest.mark.parametrize("backbone", TAPS)
def test_lpips_equals_the_reference_implementation(backbone, tmp_path):
    """Its formula in PyTorch on torchvision's network, for frames whose sides no pooling divides; by the command."""
    from helpers_torch import torch

    name, taps = TAPS[backbone]
    net, _ = torch_net(name)
    rng = np.random.default_rng(1)
    lin = {f"lin{i}.model.1.weight": torch.from_numpy(rng.random((1, c, 1, 1)).astype(np.float32)) for i, c in enumerate(taps.values())}
    torch.save(net.state_dict(), tmp_path / "net.pth")
    torch.save(lin, tmp_path / "lin.pth")
    arguments = [f"--net=lpips-{backbone}", f"--weights={tmp_path}/net.pth", f"--out={tmp_path}/lpips.npz"]
    with pytest.raises(UserError, match="--lin=FILE.pth has the learned weights of LPIPS: give it"):
        convert_features.main(arguments)
    convert_features.main([*arguments, f"--lin={tmp_path}/lin.pth"])
    pair = [rng.random((2, 2, 67, 94, 3)).astype(np.float32) for _ in range(2)]
    found = jax.jit(LPIPS(backbone).apply)({"params": nest(dict(runs.read_npz(tmp_path / "lpips.npz")))}, *pair)
    shift, scale = (torch.tensor(x)[:, None, None] for x in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]))

    def features(video):
        x, maps = (torch.from_numpy(2 * video.reshape(-1, 67, 94, 3).transpose(0, 3, 1, 2) - 1) - shift) / scale, []
        for i, layer in enumerate(net.features):
            x = layer(x)
            if i in taps:
                maps.append(x / (torch.sqrt(torch.sum(x**2, dim=1, keepdim=True)) + 1e-10))
        return maps

    with torch.no_grad():
        maps = zip(lin.values(), *map(features, pair), strict=True)
        expected = sum(torch.nn.functional.conv2d((a - b) ** 2, w).mean(dim=(1, 2, 3)) for w, a, b in maps)
    assert relative_error(found.reshape(-1), expected.numpy()) < 1e-4


@pytest.mark.full
def test_dino_equals_that_of_transformers(tmp_path):
    """Of a file by the transformers library, and by facebookresearch/dino's names, where queries, keys and values are one matrix."""
    from helpers_torch import torch, transformers

    torch.manual_seed(0)
    sizes = dict(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536, image_size=224, patch_size=16)
    net = transformers.ViTModel(transformers.ViTConfig(**sizes, layer_norm_eps=1e-6), add_pooling_layer=True).eval()
    for parameter in net.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    net.save_pretrained(tmp_path)
    images = np.random.default_rng(0).standard_normal((2, 224, 224, 3)).astype(np.float32)
    with torch.no_grad():
        expected = net(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).last_hidden_state[:, 0].numpy()
    convert_features.main(["--net=dino", f"--weights={tmp_path}/model.safetensors", f"--out={tmp_path}/dino.npz"])
    params = dict(runs.read_npz(tmp_path / "dino.npz"))
    assert relative_error(jax.jit(DINO().apply)({"params": nest(params)}, images), expected) < 1e-4
    joined = facebooks({n: np.asarray(x) for n, x in convert_features.read(f"{tmp_path}/model.safetensors").items()})
    assert len(joined) == 150  # arrays of the published file
    again = convert_features.convert("dino", joined)
    assert again.keys() == params.keys() and all(np.array_equal(again[n], params[n]) for n in params)


def facebooks(theirs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The transformers library's arrays of a ViT by facebookresearch/dino's names."""
    found = {"cls_token": theirs["embeddings.cls_token"], "pos_embed": theirs["embeddings.position_embeddings"]}
    for end in ("weight", "bias"):
        found |= {f"patch_embed.proj.{end}": theirs[f"embeddings.patch_embeddings.projection.{end}"], f"norm.{end}": theirs[f"layernorm.{end}"]}
        for i in range(12):
            layer = lambda name: theirs[f"encoder.layer.{i}.{name}.{end}"]
            found[f"blocks.{i}.attn.qkv.{end}"] = np.concatenate([layer(f"attention.attention.{part}") for part in ("query", "key", "value")])
            names = {"attn.proj": "attention.output.dense", "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense", "norm1": "layernorm_before", "norm2": "layernorm_after"}
            found |= {f"blocks.{i}.{ours}.{end}": layer(name) for ours, name in names.items()}
    return found


# I3D and C3D ---------------------------------------------------------------------------------------------------------


def torch_i3d():
    """I3D as pytorch-i3d has it, the names of its weights too, with gains, random weights and statistics; logits by `forward`."""
    import torch
    from torch import nn
    from torch.nn import functional

    from magvid.models.i3d import MIXED

    def padded(x, window, stride):  # TensorFlow's SAME
        pads = []
        for n, k, s in zip(reversed(x.shape[2:]), reversed(window), reversed(stride)):
            total = max(k - (s if n % s == 0 else n % s), 0)
            pads += [total // 2, total - total // 2]
        return functional.pad(x, pads)

    class Unit(nn.Module):
        def __init__(self, c, features, kernel=1, stride=1, last=False):
            super().__init__()
            self.window, self.stride = (kernel,) * 3, (stride,) * 3
            self.conv3d = nn.Conv3d(c, features, kernel, stride, bias=last)
            if not last:
                self.bn = nn.BatchNorm3d(features, eps=1e-3)

        def forward(self, x):
            x = self.conv3d(padded(x, self.window, self.stride))
            return functional.relu(self.bn(x)) if hasattr(self, "bn") else x

    def pool(x, window, stride):
        return functional.max_pool3d(padded(x, window, stride), window, stride)

    class Mixed(nn.Module):
        def __init__(self, c, f):
            super().__init__()
            self.b0, self.b1a, self.b1b = Unit(c, f[0]), Unit(c, f[1]), Unit(f[1], f[2], 3)
            self.b2a, self.b2b, self.b3b = Unit(c, f[3]), Unit(f[3], f[4], 3), Unit(c, f[5])

        def forward(self, x):
            pooled = self.b3b(pool(x, (3, 3, 3), (1, 1, 1)))
            return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), pooled], 1)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.Conv3d_1a_7x7, self.Conv3d_2b_1x1, self.Conv3d_2c_3x3 = Unit(3, 64, 7, 2), Unit(64, 64), Unit(64, 192, 3)
            c = 192
            for name, (f, _) in MIXED.items():
                self.add_module(name, Mixed(c, f))
                c = f[0] + f[2] + f[4] + f[5]
            self.logits = Unit(c, 400, last=True)

        def forward(self, x):
            x = self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(pool(self.Conv3d_1a_7x7(x), (1, 3, 3), (1, 2, 2))))
            for name, (_, pooling) in MIXED.items():
                x = getattr(self, name)(pool(x, *pooling) if pooling else x)
            return self.logits(functional.avg_pool3d(x, (2, 7, 7), 1)).squeeze(3).squeeze(3).mean(2)

    torch.manual_seed(0)
    net = Net().eval()
    for key, value in net.state_dict().items():
        if "bn" in key and "num_batches" not in key:
            value.copy_(0.1 * torch.randn(value.shape) + (1 if key.endswith(("running_var", "weight")) else 0))
    return net


@pytest.mark.full
def test_i3d_equals_pytorch_i3ds():
    """Two clips, of 17 frames, so that the mean over time is one of two steps; gains are folded into kernels."""
    import torch

    net = torch_i3d()
    params = nest(convert_features.convert("i3d", arrays(net)))
    video = np.random.default_rng(1).uniform(-1, 1, (2, 17, 224, 224, 3)).astype(np.float32)
    with torch.no_grad():
        expected = net(torch.from_numpy(video.transpose(0, 4, 1, 2, 3).copy()))
    found = jax.jit(I3D().apply)({"params": params}, video)
    assert relative_error(found.logits, expected.numpy()) < 1e-4


def i3d_arrays() -> dict[str, np.ndarray]:
    """Ours, all numbers different."""
    rng = np.random.default_rng(2)
    shapes = flatten_dict(jax.eval_shape(I3D().init, jax.random.key(0), jnp.zeros((1, 16, 224, 224, 3)))["params"], sep="/")
    return {name: rng.random(x.shape, np.float32) for name, x in shapes.items()}


def test_the_published_graphs_variables_are_the_same_i3d(tmp_path):
    """DeepMind's names, of which one differs from its siblings, in an .npz file; by the command."""
    import re

    ours, theirs = i3d_arrays(), {}
    for name, x in ours.items():
        scope = re.sub(r"(Branch_\d)_", r"\1/", name.rpartition("/")[0]).removesuffix("/conv").replace("logits", "Logits/Conv3d_0c_1x1")
        scope = scope.replace("Mixed_5b/Branch_2/Conv3d_0b_3x3", "Mixed_5b/Branch_2/Conv3d_0a_3x3")
        end = name.rpartition("/")[2]
        if end == "kernel":
            theirs[f"RGB/inception_i3d/{scope}/conv_3d/w:0"] = x.reshape(1, 1, 1, *x.shape) if x.ndim == 2 else x
        elif "Logits" in scope:
            theirs[f"RGB/inception_i3d/{scope}/conv_3d/b:0"] = x
        else:
            part = dict(bias="beta", mean="moving_mean", var="moving_variance")[end]
            theirs[f"RGB/inception_i3d/{scope}/batch_norm/{part}:0"] = x.reshape(1, 1, 1, 1, -1)
    np.savez(tmp_path / "hub.npz", **theirs)
    convert_features.main(["--net=i3d", f"--weights={tmp_path}/hub.npz", f"--out={tmp_path}/i3d.npz"])
    with np.load(tmp_path / "i3d.npz") as found:
        assert set(found) == set(ours) and all(np.array_equal(found[name], x) for name, x in ours.items())
    theirs.pop("RGB/inception_i3d/Mixed_4d/Branch_3/Conv3d_0b_1x1/batch_norm/beta:0")
    with pytest.raises(ValueError, match="Mixed_4d/Branch_3_Conv3d_0b_1x1/bias is missing"):
        convert_features.convert("i3d", theirs)


def test_c3d_and_its_mean_clip(tmp_path):
    """Chainer's names and axes; of the mean clip, blue first, the part that TGANv2 cuts out."""
    rng = np.random.default_rng(3)
    shapes = flatten_dict(jax.eval_shape(C3D().init, jax.random.key(0), jnp.zeros((1, 16, 112, 112, 3)))["params"], sep="/")
    small = lambda shape: rng.random(shape[-2:], np.float32)[(None,) * (len(shape) - 2)]  # 80 million different numbers take seconds
    ours = {name: np.broadcast_to(small(x.shape), x.shape) for name, x in shapes.items() if name != "mean"}
    ends = dict(kernel="W", bias="b")
    theirs = {f"{name.partition('/')[0]}/{ends[name.partition('/')[2]]}": x.transpose(-1, -2, *range(x.ndim - 2)) if x.ndim > 1 else x for name, x in ours.items()}
    mean = np.arange(3 * 16 * 128 * 171, dtype=np.float32).reshape(3, 16, 128, 171)
    np.savez(tmp_path / "c3d.npz", **theirs)
    np.savez(tmp_path / "mean.npz", mean=mean.reshape(3, -1))
    command = ["--net=c3d", f"--weights={tmp_path}/c3d.npz", f"--out={tmp_path}/out.npz"]
    convert_features.main([*command, f"--mean={tmp_path}/mean.npz"])
    with np.load(tmp_path / "out.npz") as found:
        assert set(found) == set(shapes) and all(np.array_equal(found[name], x) for name, x in ours.items())
        np.testing.assert_array_equal(found["mean"][5, 0, 1], mean[:, 5, 8, 9])
    with pytest.raises(UserError, match="--mean=FILE.npz is the mean clip of c3d: give it"):
        convert_features.main(command)
    with pytest.raises(UserError, match="has no array called mean, but conv1a/"):
        convert_features.main([*command, f"--mean={tmp_path}/c3d.npz"])
    np.savez(tmp_path / "short.npz", mean=mean[..., :100])
    with pytest.raises(ValueError, match="mean clip should be of 3 x 16 x 128 x 171 numbers"):
        convert_features.main([*command, f"--mean={tmp_path}/short.npz"])
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "empty.npz").touch()
    np.save(tmp_path / "lone.npy", mean[0, 0])
    (tmp_path / "lone.npy").rename(tmp_path / "lone.npz")
    for name in ("text", "empty", "lone"):
        with pytest.raises(UserError, match=f"{name}.npz is no .npz file of arrays"):
            convert_features.main(["--net=i3d", f"--weights={tmp_path}/{name}.npz", f"--out={tmp_path}/b.npz"])
        with pytest.raises(UserError, match="is not a file of converted weights"):
            runs.resolve_spec(dict(target="a:B", net=dict(target="c:D", weights_file=f"{tmp_path}/{name}.npz")), "metrics[0]")
    with pytest.raises(UserError, match="there is no file"):
        convert_features.main(["--net=i3d", f"--weights={tmp_path}/gone.npz", f"--out={tmp_path}/b.npz"])
