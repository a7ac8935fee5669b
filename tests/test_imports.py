"""Every file imports; the arrows of the design hold; the core needs only its few packages."""

import ast
import importlib
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
MODULES = sorted(
    str(p.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__")
    for folder in ("magvid", "configs", "experiments", "tools", "benchmarks")
    for p in (ROOT / folder).rglob("*.py")
)
DRIVERS = {"train", "encode", "provenance", "generator", "conditions", "connect", "predict", "compose", "edit", "adapter_files", "run_files", "evaluate", "explain", "ahead", "sample", "job", "flags", "commands"}
MACHINERY = {"build", "draw", "state", "optim", "sharding", "checkpoints", "runs", "logs", "cost", "meter", "guard", "watchdog", "cluster", "data.pipeline"}
MACHINERY |= {"data.cache", "data.joint", "data.latents", "data.tokens", "data.views", "metrics.frames", "video", "types"}

# module or package -> what it may import of magvid (a prefix allows its whole package)
ARROWS = {
    "types": set(),
    "build": set(),
    "video": {"types"},
    "losses": {"types"},
    "masked": {"types", "build", "masked"},
    "diffusion": {"types", "diffusion"},
    "models": {"types", "models", "sharding"},
    "adapters": {"types", "models.layers", "models.attention", "models.conditioners", "adapters"},
    "data": {"types", "build", "video", "data"},
    "metrics": {"types", "video", "models", "data.sprite_world", "metrics"},
    "objectives": {"types", "video", "losses", "masked", "diffusion", "objectives"},
    "optim": {"build"},
    "draw": {"sharding"},
    "cost": set(),
    "meter": set(),
    "guard": set(),
    "cluster": {"watchdog"},
    "watchdog": {"types"},
    "lora": set(),
    "grafts": set(),
    "sharding": {"types"},
    "state": {"types", "optim", "sharding"},
    "logs": {"types", "video"},
    "checkpoints": {"types", "sharding", "state"},
    "runs": {"types", "build", "state", "checkpoints"},
    "curves": set(),
    "report": {"curves", "video", "types"},
    "provenance": MACHINERY | {"data.stream"},
    "pictures": {"masked.tasks", "video", "types"},
    "job": MACHINERY | {"provenance"},
    "train": MACHINERY | {"job"},
    "encode": MACHINERY | {"job", "provenance"},
    "explain": MACHINERY | {"job", "data.blank"},
    "ahead": MACHINERY | {"explain"},
    "generator": MACHINERY | {"job", "adapter_files"},
    "evaluate": MACHINERY | {"job", "generator"},
    "conditions": MACHINERY | {"generator", "data.images"},
    "adapter_files": MACHINERY | {"grafts", "run_files"},
    "run_files": MACHINERY,
    "predict": MACHINERY | {"job", "generator", "conditions", "data.states"},
    "compose": MACHINERY | {"job", "generator", "conditions", "data.images", "data.masks", "data.entities"},
    "edit": MACHINERY | {"job", "generator", "conditions", "compose", "data.masks", "data.entities"},
    "connect": MACHINERY | {"job", "generator", "conditions", "data.images"},
    "sample": MACHINERY | {"job", "generator", "conditions", "pictures", "data.entities"},
    "flags": set(),
    "commands": {"flags"},
    "__main__": MACHINERY | DRIVERS | {"report"},
}


def imports_of(module: str) -> set[str]:
    """Everything that a file imports, at the top or inside functions, as dotted names."""
    path = ROOT / (module.replace(".", "/") + ".py")
    path = path if path.exists() else ROOT / module.replace(".", "/") / "__init__.py"
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def within(name: str, prefixes: set[str]) -> bool:
    return any(name == p or name.startswith(p + ".") for p in prefixes)


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("magvid.")])
def test_arrows(module):
    short = module.removeprefix("magvid.")
    home = short if short in ARROWS else short.split(".")[0]
    if home in ("adapters", "data", "diffusion", "metrics", "models", "masked", "objectives") and short == home:
        return  # an empty __init__
    assert home in ARROWS, f"say in ARROWS what {module} may import"
    for name in imports_of(module):
        outside = {"tools", "configs", "experiments", "tests", "torch", "tensorflow"}
        assert not within(name, outside), f"{module} imports {name}"
        if name.startswith("magvid."):
            assert within(name.removeprefix("magvid."), ARROWS[home]), f"{module} must not import {name}"


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith(("magvid.masked", "magvid.diffusion", "magvid.losses"))])
def test_mathematics_knows_no_flax(module):
    assert not {name for name in imports_of(module) if name.startswith(("flax", "optax", "orbax"))}


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("configs")])
def test_configs_are_data(module):
    assert all(within(name, {"ml_collections", "configs"}) for name in imports_of(module))


def told_apart(module: str):
    """A module for a test that imports it: one that measures against torch needs the extra `parity`."""
    parity = any(within(name, {"helpers_torch"}) for name in imports_of(module))
    return pytest.param(module, marks=pytest.mark.full) if parity else module


@pytest.mark.parametrize("module", [told_apart(m) for m in MODULES])
def test_every_file_imports(module):
    importlib.import_module(module)


def test_the_core_imports_without_the_optional_packages():
    """The light core (design: `The arrows`) works where only jax, flax, optax, chex, einops, jaxtyping, numpy, scipy
    are installed.
    """
    blocked = ["absl", "ml_collections", "grain", "av", "PIL", "tensorflow_datasets", "transformers", "tensorboardX"]
    blocked += ["torch", "orbax"]
    core = [m for m in MODULES if m.startswith(("magvid.models", "magvid.masked", "magvid.objectives"))]
    core += ["magvid", "magvid.losses", "magvid.build"]
    program = f"""
import sys
import flax.linen, optax  # these bring some of the blocked packages themselves
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r} and name not in sys.modules:
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Block())
for m in {blocked!r}:
    sys.modules.pop(m, None)
import importlib
for m in {core!r}:
    importlib.import_module(m)
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
