"""Weights and inputs of the golden files of diffusers' and MAVIN's networks: made anew from their names, not stored."""

import zlib

import numpy as np

from helpers import GOLDEN

FOLDER = GOLDEN.parent / "diffusion"


def golden_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weight of this (PyTorch) name."""
    r = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF).standard_normal(shape).astype(np.float32)
    if len(shape) <= 1:
        return (1 if name.endswith("weight") else 0) + np.float32(0.1) * r
    return (r / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def golden_input(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The input of this name, in PyTorch's order of axes."""
    r = np.random.RandomState(zlib.crc32(f"input:{name}".encode()) & 0x7FFFFFFF)
    return r.standard_normal(shape).astype(np.float32)
