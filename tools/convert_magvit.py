"""Checkpoints of the official MAGVIT code (flax msgpack) <-> weights that a config of ours can name (.npz).

    python tools/convert_magvit.py --config=configs/vq3d_ucf101.py:size=B,official=1 --group=tokenizer \
        --checkpoint=checkpoint_37000 --out=weights/vq3d_ucf101_B.npz
    python tools/convert_magvit.py --back ... --checkpoint=weights/vq3d_ucf101_B.npz --out=checkpoint_0

In a config: `objective.tokenizer = dict(target=..., weights_file="weights/vq3d_ucf101_B.npz")`. The tokenizers and
discriminators have the official names and need no rule; the transformers have clearer ones.
"""

import pathlib
import sys
from collections.abc import Mapping

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization
from flax.traverse_util import flatten_dict, unflatten_dict

from magvid.build import build
from magvid.flags import Flag, Program, guarded, leave, load_config, parse, program_help
from magvid.types import UserError
from tools.rules import Rule, check, invert, rename

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
"""Official transformer -> magvid.models.transformer, for `tools.rules.rename`."""

CAUSAL = [
    (r"Embed_0/embedding", r"words/embedding"),
    (r"PositionEmbeddings_0/embed_pos", r"positions"),
    (r"VTNLayer_(\d+)/LayerNorm_0/(scale|bias)", r"block_\1/attention_norm/\2"),
    (r"VTNLayer_(\d+)/SelfAttention_0/(query|key|value|out)/kernel", r"block_\1/attention/\2/kernel"),
    (r"VTNLayer_(\d+)/LayerNorm_1/(scale|bias)", r"block_\1/mlp_norm/\2"),
    (r"VTNLayer_(\d+)/MlpBlock_0/Dense_0/(kernel|bias)", r"block_\1/mlp_in/\2"),
    (r"VTNLayer_(\d+)/MlpBlock_0/Dense_1/(kernel|bias)", r"block_\1/mlp_out/\2"),
    (r"decoder_out_ln/(scale|bias)", r"norm/\1"),
    (r"logits_dense/(kernel|bias)", r"head/\1"),
]
"""Official `TransformerLM` (untied) -> magvid.models.causal; the positions lose their leading axis of 1."""

SAME: list[Rule] = [(r"(.*)", r"\1")]
# group: (rules, where the official train state keeps it)
GROUPS = {"tokenizer": (SAME, "ema_params"), "discriminator": (SAME, "d_params"), "transformer": (TRANSFORMER, "params")}

PROGRAM = Program(
    "python tools/convert_magvit.py",
    "Convert one group of an official MAGVIT checkpoint to weights that a config can name, or back.",
    [
        Flag("config", "str", None, "FILE.py[:ARG]", "the config whose model the weights are of"),
        Flag("group", "str", None, "|".join(GROUPS), "which part of the model"),
        Flag("checkpoint", "str", None, "FILE", "official checkpoint (msgpack); with --back, an .npz of this tool"),
        Flag("tree", "str", None, "NAME", "its entry; default: ema_params, d_params or params, as the group"),
        Flag("out", "str", None, "FILE", "an .npz; with --back, a checkpoint with that one entry"),
        Flag("back", "bool", False, "", "from our weights to an official checkpoint"),
    ],
    ["--config=configs/vq3d_ucf101.py:size=B,official=1 --group=tokenizer --checkpoint=checkpoint_37000 --out=vq.npz"],
)


def to_ours(group: str, official: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Official names -> ours. ValueError names what is missing, unknown or of a wrong shape."""
    found = rename(official, GROUPS[group][0])
    check(found, shapes)
    return found


def to_official(group: str, ours: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The reverse."""
    check(ours, shapes)
    return rename(ours, invert(GROUPS[group][0]))


def shapes_of(config: str, group: str) -> dict[str, tuple[int, ...]]:
    """{name: shape} of our parameters of `group` in a config; nothing but shapes is computed, no data is read."""
    loaded = load_config(config).to_dict()
    spec = loaded["objective"].get(group)
    if not spec or "target" not in spec:
        raise UserError(f"the config {config} does not describe a {group}: its objective has {', '.join(loaded['objective'])}")
    clip = loaded["data"]["train"]["source"]
    video = jnp.zeros((1, clip["frames"], clip["height"], clip["width"], 3))
    example = video if group != "transformer" else jnp.zeros((1, spec["length"]), jnp.int32)
    tree = jax.eval_shape(build({k: v for k, v in spec.items() if k != "weights_file"}).init, jax.random.key(0), example)
    return {name: x.shape for name, x in flatten_dict(tree["params"], sep="/").items()}


def read_official(path: pathlib.Path, tree: str) -> dict[str, np.ndarray]:
    """One entry of a flax msgpack checkpoint by '/'-joined names; a leading axis of devices is not expected."""
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        state = serialization.msgpack_restore(path.read_bytes())
    except Exception as error:
        raise UserError(f"{path} is not a flax checkpoint ({type(error).__name__}): give the file checkpoint_<step>") from None
    if not isinstance(state, dict) or not isinstance(state.get(tree), dict):
        have = ", ".join(state) if isinstance(state, dict) else type(state).__name__
        raise UserError(f"{path} has no entry {tree}: it has {have}; name one by --tree")
    return {name: np.asarray(x) for name, x in flatten_dict(state[tree], sep="/").items()}


def main(argv: list[str]) -> None:
    if {"--help", "-h"} & set(argv):
        print(program_help(PROGRAM))
        return
    flags = parse(PROGRAM, argv, "config group checkpoint out")
    if flags.group not in GROUPS:
        raise UserError(f"--group={flags.group} is none of {', '.join(GROUPS)}")
    shapes, tree = shapes_of(flags.config, flags.group), flags.tree or GROUPS[flags.group][1]
    source, out = pathlib.Path(flags.checkpoint), pathlib.Path(flags.out)
    if flags.back == (out.suffix == ".npz"):
        raise UserError(f"--out={out}: " + ("a checkpoint does not end" if flags.back else "weights end") + " in .npz")
    out.parent.mkdir(parents=True, exist_ok=True)
    if flags.back:
        if not source.is_file():
            raise UserError(f"there is no file {source}")
        with np.load(source, allow_pickle=False) as file:
            arrays = to_official(flags.group, dict(file), shapes)
        out.write_bytes(serialization.msgpack_serialize({tree: unflatten_dict(arrays, sep="/")}))
    else:
        arrays = to_ours(flags.group, read_official(source, tree), shapes)
        np.savez(out, **arrays)
    print(f"{out}: {len(arrays)} arrays, {sum(a.size for a in arrays.values()):,} numbers")


if __name__ == "__main__":
    leave(guarded("convert_magvit", sys.argv[1:], main))
