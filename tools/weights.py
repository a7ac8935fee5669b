"""Files of weights, read and written one array at a time: what an array is called and its shape are known before any is
read.

Read: .safetensors; .bin, .pt, .pth, .ckpt of PyTorch, of which nothing but arrays is unpickled; either in several files
with an index (.index.json), or a folder of diffusers or transformers. Written: .safetensors. What a file seems to hold is
said by `describe`. The safetensors package, whose format it is (a test holds them equal), says neither how much of a cut
file is there nor which array is wrong, and writes only what is in memory all at once.
"""

import dataclasses
import functools
import hashlib
import json
import math
import os
import pathlib
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from magvid.types import UserError

DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "BOOL": np.bool_,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "U16": np.uint16,
    "U32": np.uint32, "U64": np.uint64, "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
}  # fmt: skip
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}

CONFIG = "config.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
INDEX = re.compile(r".*\.index(\.\w+)?\.json")
# What diffusers and transformers call a folder's weights; a variant such as fp16 stands before the last suffix, of an index too.
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
NAME = re.compile(rf"({'|'.join(STEMS)})(?:\.(\w+))?\.(safetensors|bin)(\.index(?:\.(\w+))?\.json)?")
HEADER = 100 * 2**20  # bytes; what safetensors itself allows


@dataclasses.dataclass(frozen=True)
class Stored:
    """An array that has not been read yet."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    place: pathlib.Path | None = None  # the file or the run that it is in

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self.read(), dtype)

    @classmethod
    def of(cls, array: np.ndarray) -> "Stored":
        return cls(array.shape, array.dtype, lambda: array)


Weights = Mapping[str, Stored]


@dataclasses.dataclass(frozen=True)
class Source:
    """What was found at a path."""

    weights: dict[str, Stored]
    files: Sequence[pathlib.Path]  # that hold them

    @property
    def config_file(self) -> pathlib.Path:
        return self.files[0].parent / CONFIG

    @functools.cached_property
    def config(self) -> Mapping[str, Any]:
        """What config.json beside them says; {} where there is none. UserError names one that is damaged."""
        return read_config(self.config_file)


# Reading ------------------------------------------------------------------------------------------------------------


def open_weights(path: str | os.PathLike, folders: Sequence[str] = ()) -> Source:
    """The weights at `path`: a file, an index, or a folder. Of a whole pipeline's folder, what is in the first of
    `folders` (such as "unet") that it has.

    UserError, in one sentence, for what is missing, cut short, or no file of weights.
    """
    path = pathlib.Path(path).expanduser()
    if path.is_dir():
        path = _in_folder(path, folders)
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    files = [path]
    if INDEX.fullmatch(path.name):
        weights, files = _indexed(path)
    else:
        weights = _one_file(path)
    if not weights:
        raise UserError(f"{path} holds no arrays")
    return Source(weights, files)


def _one_file(path: pathlib.Path) -> dict[str, Stored]:
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix in PICKLES:
        return read_pickle(path)
    raise UserError(f"{path} is not a file of weights that is known here: .safetensors, {', '.join(PICKLES)}, or *.index.json")


def _in_folder(folder: pathlib.Path, folders: Sequence[str]) -> pathlib.Path:
    inner = next((folder / name for name in folders if (folder / name).is_dir()), None)
    inside = sorted(p.name for p in folder.iterdir())
    if inner is not None:
        return _in_folder(inner, ())
    known = {name: found for name in inside if (found := NAME.fullmatch(name))}
    variants = {name: found[2] or found[5] for name, found in known.items()}
    plain = [name for name, variant in variants.items() if variant is None]
    if plain or len(set(variants.values())) == 1:
        rank = lambda name: (STEMS.index(known[name][1]), known[name][3] == "bin", known[name][4] is not None)
        return folder / min(plain or known, key=rank)
    others = [name for name in inside if name.endswith((".safetensors", *PICKLES)) or INDEX.fullmatch(name)]
    if len(others) == 1:
        return folder / others[0]
    what = f"several: {', '.join(others)}" if others else f"none; it holds {', '.join(inside[:8]) or 'nothing'}"
    wanted = f" or a folder {' or '.join(folders)}" if folders else ""
    raise UserError(f"{folder} should hold one file of weights{wanted}, and has {what}: name the file")


def read_config(path: pathlib.Path) -> Mapping[str, Any]:
    """The object in a config.json; {} where there is no such file. UserError names one that holds none."""
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): download it again") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} holds {json.dumps(config)[:40]}, not an object {{...}}: download it again")
    return config


def _indexed(index: pathlib.Path) -> tuple[dict[str, Stored], list[pathlib.Path]]:
    try:
        places = json.loads(index.read_text("utf-8"))["weight_map"]
        names = sorted(set(places.values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f'{index} is not an index of weights, {{"weight_map": {{name: file}}}}: download it again') from None
    if bad := [n for n in names if pathlib.PurePath(n).name != n]:
        raise UserError(f"{index} names {bad[0]}, which is not a file beside it")
    if missing := [n for n in names if not (index.parent / n).is_file()]:
        raise UserError(f"{index} names {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} missing beside it")
    weights = {}
    for file in names:
        found = _one_file(index.parent / file)
        listed = {name for name, place in places.items() if place == file}
        if differs := sorted(listed ^ found.keys()):
            where = "is only in the index" if differs[0] in listed else "is not in the index"
            raise UserError(f"{index.parent / file} and {index.name} do not belong together: {differs[0]} {where}")
        weights |= found
    return weights, [index.parent / name for name in names]


def read_safetensors(path: pathlib.Path) -> dict[str, Stored]:
    """The format is 8 bytes with the length of a JSON header {name: {dtype, shape, data_offsets}}, the header, the data."""
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= length <= min(HEADER, size - 8):
                raise ValueError(f"its header would have {length:,} bytes, and the file has {size:,}")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        weights, end = {}, 0
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            if entry["dtype"] not in DTYPES:
                raise ValueError(f"{name} is of the unknown type {entry['dtype']}")
            shape, dtype = tuple(map(int, entry["shape"])), np.dtype(DTYPES[entry["dtype"]])
            start, stop = entry["data_offsets"]
            if start != end or stop - start != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"the place of {name} does not fit its shape {shape}")
            end = stop
            weights[name] = Stored(shape, dtype, _reader(path, shape, dtype, 8 + length + start), path)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a whole .safetensors file ({error}): download it again") from None
    if 8 + length + end != size:
        raise UserError(f"{path} is cut short: it has {size:,} of {8 + length + end:,} bytes; download it again")
    return weights


def _reader(path: pathlib.Path, shape: tuple[int, ...], dtype: np.dtype, offset: int) -> Callable[[], np.ndarray]:
    return lambda: np.fromfile(path, dtype, math.prod(shape), offset=offset).reshape(shape)


def read_pickle(path: pathlib.Path) -> dict[str, Stored]:
    """A state dict by torch.save, also inside of {"state_dict": ...} as Lightning has it. Nothing but arrays and plain
    Python values is unpickled; newer files are mapped into memory, not read.
    """
    try:
        import torch
    except ImportError:
        raise UserError(f"reading {path.name} needs torch: pip install torch, or give a .safetensors file") from None
    try:
        with warnings.catch_warnings(action="ignore"):
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except Exception as error:
        text = " ".join(str(error).split())
        if found := re.search(r"(?i)global:?(?: global)? (\w+\.[\w.]+)", text):
            raise UserError(
                f"{path} would run code when it is read ({found[1]}), which a file of weights need not: nothing was read; "
                "get the .safetensors file of the same weights"
            ) from None
        # torch's own text goes on with the advice to allow code
        reason = re.search(r"WeightsUnpickler error: (.*?)(?: Check the doc|$)", text)
        kind = reason[1] if reason else type(error).__name__
        raise UserError(f"{path} is not a whole state dict by torch.save ({kind}): download it again") from None
    for key in ("state_dict", "model_state_dict", "model", "module"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping):
        raise UserError(f"{path} holds a {type(state).__name__}, not arrays by name")
    return {str(n): dataclasses.replace(_stored(t), place=path) for n, t in state.items() if isinstance(t, torch.Tensor)}


def _is_zip(path: pathlib.Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _stored(tensor) -> Stored:
    """Of a torch tensor; NumPy has no bfloat16, so its bits travel as integers."""
    import torch

    if tensor.dtype == torch.bfloat16:
        return Stored(
            tuple(tensor.shape),
            np.dtype(ml_dtypes.bfloat16),
            lambda: tensor.detach().contiguous().view(torch.uint16).numpy().view(ml_dtypes.bfloat16),
        )
    dtype = torch.empty(0, dtype=tensor.dtype).numpy().dtype
    return Stored(tuple(tensor.shape), dtype, lambda: tensor.detach().contiguous().numpy())


def sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Writing ------------------------------------------------------------------------------------------------------------


def write_safetensors(path: pathlib.Path, weights: Weights, metadata: Mapping[str, str] | None = None) -> None:
    """Array by array; the file appears under its name when it is whole."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for name, x in weights.items():
        header[name] = {"dtype": NAMES[np.dtype(x.dtype)], "shape": list(x.shape), "data_offsets": [end, end + x.nbytes]}
        end += x.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(part, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for x in weights.values():
                np.ascontiguousarray(x).tofile(file)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


# Telling what it is -------------------------------------------------------------------------------------------------

WRAPPERS = ("module.", "_orig_mod.")  # of torch's DataParallel and compile

# (a name that only such weights have, what they are, the tool, its preset as a function of {name: shape})
Kind = tuple[str, str, str, Callable[[Mapping[str, tuple[int, ...]]], str]]


def _unet(shapes: Mapping[str, tuple[int, ...]]) -> str:
    has = lambda part: any(part in name for name in shapes)
    if has("add_embedding.") and has("temporal_res_block"):
        return "svd"
    if has("temp_convs") and has(".convs."):
        return "magdiff"
    if has("transformer_in."):
        return "mavin" if has("cond_proj") else "modelscope"
    width = next((s[-1] for n, s in shapes.items() if n.endswith("attn2.to_k.weight")), None)
    return {768: "sd15", 1024: "sd21"}.get(width, "")


def _width(of: Mapping[int, str], *names: str) -> Callable[[Mapping[str, tuple[int, ...]]], str]:
    """The preset by the last axis of a layer."""
    return lambda shapes: of.get(next((shapes[n][-1] for n in names if n in shapes), 0), "")


def _vae(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return "svd" if any("temporal_res_block" in name for name in shapes) else "sd"


_TEXT, _VISION = {768: "clip_l_text", 1024: "openclip_h_text"}, {1024: "clip_l_vision", 1280: "openclip_h_vision"}
KINDS: list[Kind] = [
    (r"time_embedding\.linear_1\.weight", "a U-Net of diffusers", "convert_unet", _unet),
    (r"encoder\.down_blocks\.0\.resnets\.0\.conv1\.weight", "an autoencoder of diffusers", "convert_vae", _vae),
    (
        r"(text_model\.)?embeddings\.token_embedding\.weight",
        "a text tower of CLIP",
        "convert_clip",
        _width(_TEXT, "text_model.embeddings.token_embedding.weight", "embeddings.token_embedding.weight"),
    ),
    (
        r"(vision_model\.)?embeddings\.class_embedding",
        "an image tower of CLIP",
        "convert_clip",
        _width(_VISION, "vision_model.embeddings.class_embedding", "embeddings.class_embedding"),
    ),
    (r"layers\.0\.0\.to_kv\.weight", "a resampler of image tokens", "convert_resampler", lambda shapes: "magdiff"),
]
FOREIGN = [
    (r"(model\.diffusion_model|first_stage_model|cond_stage_model)\..*", "a checkpoint with the original code's names: get "
     "the same model in the layout of diffusers"),
    (r".*(lora_A|lora_B|lora_up|lora_down|\.alpha)\b.*", "a LoRA, which is only an addition to a model: give the model's file"),
    (r"(features|layer1|classifier)\..*", "a network of torchvision, which tools/convert_features.py takes"),
    (r"(params|g_params|ema_params)\b.*", "a checkpoint of the official MAGVIT code, which tools/convert_magvit.py takes"),
]  # fmt: skip


def describe(shapes: Mapping[str, tuple[int, ...]], asked: str = "", presets: Sequence[str] = ()) -> str:
    """A sentence: what weights of these names and shapes seem to be, and which tool takes them. `asked`, `presets`: the tool
    that asks, and what it has to choose of.
    """
    found = []
    for prefix, part in sorted(parts(shapes).items()):
        for name, what, tool, preset in KINDS:
            if any(re.fullmatch(name, n) for n in part):
                guess = preset(part)
                takes = f"which tools/{tool}.py{f' --preset={guess}' if guess else ''} takes"
                if tool == asked and not guess:
                    takes = f"but not clearly one of --preset={', '.join(presets)}"
                found.append(f"{what}{f' under {prefix}*' if prefix else ''}, {takes}")
    if found:
        return f"It looks like {', and '.join(found)}."
    for name, what in FOREIGN:
        if any(re.fullmatch(name, n) for n in shapes):
            return f"It looks like {what}."
    return f"Its first names are {', '.join(list(shapes)[:3])}."


# What whole systems put before the names of their parts: MagDiff's Lightning checkpoint, and pipelines in one file.
PREFIXES = ("unet.", "vae.", "text_encoder.", "image_encoder.", "enclip_projector.")


def parts(weights: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{prefix: {name behind it: array}} of weights of several networks in one file; {"": weights} of one network."""
    for wrapper in WRAPPERS:
        if weights and all(name.startswith(wrapper) for name in weights):
            weights = {name.removeprefix(wrapper): x for name, x in weights.items()}
    found: dict[str, dict[str, Any]] = {}
    for name, x in weights.items():
        prefix = next((p for p in PREFIXES if name.startswith(p)), "")
        found.setdefault(prefix, {})[name.removeprefix(prefix)] = x
    return found
