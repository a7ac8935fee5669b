"""What the files of the official MAGVIT and MaskGIT code hold: names, places in the file, and how to tell them apart.

Both are flax msgpack. MAGVIT's are train states: of a tokenizer {g_params, ema_params, d_params, ...}, of a transformer
{params, ...}. MaskGIT's public ones are {params}. Older flax keeps the weights in optimizer/target; a state that was
saved as it lay on the devices has a leading axis of equal copies.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import serialization
from flax.traverse_util import flatten_dict

from magvid.types import UserError
from tools.rules import Rule

Flat = Mapping[str, np.ndarray]  # arrays by '/'-joined names

TRANSFORMER = [
    (r"BertEmbed_0/word_embeddings/embedding", r"words/embedding"),
    (r"BertEmbed_0/position_embeddings/embedding", r"positions"),
    (r"BertEmbed_0/embeddings_ln/(scale|bias)", r"embedding_norm/\1"),
    (
        r"BertLayer_(\d+)/BertAttention_0/self_attention/(query|key|value|out)/(kernel|bias)",
        r"block_\1/attention/\2/\3",
    ),
    (r"BertLayer_(\d+)/BertAttention_0/attention_output_ln/(scale|bias)", r"block_\1/attention_norm/\2"),
    (r"BertLayer_(\d+)/BertMlp_0/intermediate_output/(kernel|bias)", r"block_\1/mlp_in/\2"),
    (r"BertLayer_(\d+)/BertMlp_0/layer_output/(kernel|bias)", r"block_\1/mlp_out/\2"),
    (r"BertLayer_(\d+)/BertMlp_0/layer_output_ln/(scale|bias)", r"block_\1/mlp_norm/\2"),
    (r"BertMlmLayer_0/mlm_dense/(kernel|bias)", r"head/\1"),
    (r"BertMlmLayer_0/mlm_ln/(scale|bias)", r"head_norm/\1"),
    (r"BertMlmLayer_0/mlm_bias/bias", r"head_bias"),
]
"""MAGVIT's transformer -> magvid.models.transformer, for `tools.rules.rename`."""

MASKGIT = [
    (theirs.replace("BertLayer", "TransformerLayer").replace("Bert", ""), ours) for theirs, ours in TRANSFORMER
]
"""MaskGIT's, which is the same network: Embed_0, TransformerLayer_0/Attention_0, MlmLayer_0, ..."""

CAUSAL = [
    (r"Embed_0/embedding", r"words/embedding"),
    (r"PositionEmbeddings_0/embed_pos", r"positions", "drop_leading_1"),
    (r"VTNLayer_(\d+)/LayerNorm_0/(scale|bias)", r"block_\1/attention_norm/\2"),
    (r"VTNLayer_(\d+)/SelfAttention_0/(query|key|value|out)/kernel", r"block_\1/attention/\2/kernel"),
    (r"VTNLayer_(\d+)/LayerNorm_1/(scale|bias)", r"block_\1/mlp_norm/\2"),
    (r"VTNLayer_(\d+)/MlpBlock_0/Dense_0/(kernel|bias)", r"block_\1/mlp_in/\2"),
    (r"VTNLayer_(\d+)/MlpBlock_0/Dense_1/(kernel|bias)", r"block_\1/mlp_out/\2"),
    (r"decoder_out_ln/(scale|bias)", r"norm/\1"),
    (r"logits_dense/(kernel|bias)", r"head/\1"),
]
"""MAGVIT's `TransformerLM` (untied) -> magvid.models.causal."""

SAME: list[Rule] = [(r"(.*)", r"\1")]  # tokenizers and discriminators have the official names


class Format(NamedTuple):
    """Whose files: `places` of a group's weights, then of their average; `rules` by group and target of the module."""

    places: Mapping[str, Sequence[str]]
    rules: Mapping[tuple[str, str], list[Rule]]


BIDIRECTIONAL = "transformer", "magvid.models.transformer:Transformer"
FORMATS = {
    "magvit": Format(
        {"tokenizer": ("g_params", "ema_params"), "discriminator": ("d_params",), "transformer": ("params",)},
        {BIDIRECTIONAL: TRANSFORMER, ("transformer", "magvid.models.causal:CausalTransformer"): CAUSAL},
    ),
    "maskgit": Format({"tokenizer": ("params",), "transformer": ("params",)}, {BIDIRECTIONAL: MASKGIT}),
}

# Names that only one kind of weights has, and what takes them.
KINDS = {
    "BertEmbed_0": "MAGVIT's transformer, which --config=configs/commit_<data>.py takes",
    "VTNLayer_0": "MAGVIT's causal transformer, which a config with magvid.models.causal:CausalTransformer takes",
    "TransformerLayer_0": "MaskGIT's transformer, which --format=maskgit --config=configs/maskgit_imagenet.py takes",
}
TOKENIZERS = {
    5: "a 3D-VQ tokenizer, which --config=configs/vq3d_<data>.py takes",
    4: "a 2D-VQ tokenizer, which --config=configs/vq2d_<data>.py takes, and MaskGIT's --format=maskgit "
    "--config=configs/vqgan_imagenet.py",
}


def read_state(path: pathlib.Path) -> dict[str, Any]:
    """The nested content of a flax msgpack file; UserError says what else the file is."""
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if p.name.startswith("checkpoint"))
        raise UserError(f"{path} is a folder: give the file in it ({', '.join(inside[:5]) or 'checkpoint_<step>'})")
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    content = path.read_bytes()
    if content[:2] == b"PK":
        raise UserError(
            f"{path} is a zip archive, as PyTorch's .pth and NumPy's .npz: this tool takes flax's checkpoint_<step>, and "
            "tools/convert_features.py torchvision's weights"
        )
    try:
        state = serialization.msgpack_restore(content)
    except Exception as error:
        raise UserError(
            f"{path} is not a flax checkpoint, or is cut off ({type(error).__name__}, {len(content):,} bytes): give the "
            "file checkpoint_<step>, or download it again"
        ) from None
    if not isinstance(state, dict):
        raise UserError(f"{path} holds no weights but one {type(state).__name__}: give the file checkpoint_<step>")
    return state


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    return flatten_dict(dict(tree), sep="/")


def entry(state: Mapping[str, Any], place: str) -> Flat | None:
    """The arrays at a '/'-joined place of a file, None where it has none. ValueError for what is no real number."""
    old = place.replace("params", "optimizer") + "/target"  # of flax before optax
    for path in (place, f"train_state/{place}", f"state/{place}", old):
        tree = state
        for name in path.split("/"):
            tree = tree.get(name) if isinstance(tree, dict) else None
        while isinstance(tree, dict) and set(tree) == {"params"}:
            tree = tree["params"]
        if isinstance(tree, dict) and tree:
            arrays = {name: np.asarray(x) for name, x in flat(tree).items()}
            for name, x in arrays.items():
                if not jnp.issubdtype(x.dtype, jnp.floating):
                    raise ValueError(f"{path}/{name} holds {x.dtype}: weights are real numbers")
            return arrays
    return None


def unreplicate(arrays: Flat, shapes: Mapping[str, tuple[int, ...]]) -> Flat:
    """One copy, where every array has a leading axis of equal copies, one per device; else `arrays`."""
    if set(arrays) != set(shapes) or any(a.ndim == 0 or a.shape[1:] != shapes[n] for n, a in arrays.items()):
        return arrays
    for name, a in arrays.items():
        if not (a == a[:1]).all():
            raise ValueError(f"{name}: the copies of {len(a)} devices differ: save the state from one of them")
    return {name: a[0] for name, a in arrays.items()}


def describe(state: Mapping[str, Any]) -> str:
    """What a file looks like, for a message."""
    names = {name: getattr(x, "ndim", 0) for name, x in flat(state).items()}
    for part, what in KINDS.items():
        if any(part in name.split("/") for name in names):
            return f"It looks like {what}"
    kernels = [ndim for name, ndim in names.items() if name.endswith("encoder/Conv_0/kernel")]
    if kernels:
        return f"It looks like {TOKENIZERS.get(kernels[0], 'a tokenizer')}"
    return f"The file has {', '.join(map(str, list(state)[:8])) or 'nothing'}; name the place of the weights by --tree"
