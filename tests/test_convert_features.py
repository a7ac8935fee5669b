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
