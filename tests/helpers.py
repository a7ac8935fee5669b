"""Reading of the golden files; small ones are kept in tests/golden, the others in the shared folder (marker `full`)."""

import json
import pathlib

import flax
import jax
import jax.numpy as jnp
import numpy as np

from magvid.draw import Drawing

GOLDEN = pathlib.Path(__file__).parent / "golden" / "magvit"


class Golden(dict):
    """Arrays of one golden file by name; `config` is what the official code was configured with."""

    def __init__(self, name: str, folder: pathlib.Path = GOLDEN):
        with np.load(folder / f"{name}.npz") as file:
            super().__init__(file)
        self.config = json.loads(str(self["config_json"])) if "config_json" in self else {}

    def flat(self, prefix: str = "params:") -> dict[str, np.ndarray]:
        return {k.removeprefix(prefix): v.astype(np.float32) for k, v in self.items() if k.startswith(prefix)}


def nest(flat: dict[str, np.ndarray]) -> dict:
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def flatten(tree: dict) -> dict:
    return flax.traverse_util.flatten_dict(tree, sep="/")


def relative_error(actual, expected) -> float:
    """max |actual - expected| / max |expected|."""
    return float(np.max(np.abs(np.asarray(actual) - expected)) / np.max(np.abs(expected)))


def drawn(init, *args) -> dict:
    """`init(*args)`, a nested dict of parameters, which compile once for each shape and not with the network."""
    drawing, place = Drawing(init, *args), jax.sharding.SingleDeviceSharding(jax.devices()[0])
    *random, finish = drawing(jax.tree.map(lambda x: place, drawing.shapes), *args)
    return jax.tree.map(jnp.asarray, jax.device_get(jax.jit(finish)(*random)))
