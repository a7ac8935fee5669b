"""Specs become objects; what does not fit is named."""

import functools

import pytest

from magvid.build import build, resolve
from magvid.models.quantizers import VQ
from magvid.types import Vocab


def test_targets_factories_and_leaves():
    vocab, quantizer = (
        {"target": "magvid.types:Vocab", "codebook": 5},
        {"factory": "magvid.models.quantizers:VQ", "size": 3},
    )
    built = build({"a": [vocab, 1], "b": quantizer, "c": (None, "x")})
    assert built["a"] == [Vocab(5), 1] and built["c"] == (None, "x")
    assert isinstance(built["b"], functools.partial) and built["b"](dim=2) == VQ(3, 2)


@pytest.mark.parametrize(
    "spec, message",
    [
        (
            {"target": "magvid.types:Vocab", "codebok": 5},
            "magvid.types:Vocab: .*codebok.*, did you mean codebook.; its arguments are codebook, classes, specials",
        ),
        ({"target": "magvid.types:Vocab"}, "missing a required argument: 'codebook'"),
        ({"factory": "magvid.models.quantizers:VQ", "sise": 5}, "sise.*its arguments are size, dim"),
        ({"target": "magvid.types:Vokab"}, 'has no "Vokab"; it has .*Vocab'),
        ({"target": "magvid.tipes:Vocab"}, 'there is no module "magvid.tipes"'),
        ({"target": "Vocab"}, 'not of the form "package.module:Name"'),
    ],
)
def test_errors_name_the_value_and_the_remedy(spec, message):
    with pytest.raises(ValueError, match=message):
        build(spec)


def test_resolve_reaches_attributes():
    assert resolve("magvid.types:Vocab.special") is Vocab.special
