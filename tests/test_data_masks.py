"""Masks out of files as people and tools write them."""

import numpy as np
import pytest
from PIL import Image

from magvid.data.masks import decode_mask, same_shape
from magvid.types import UserError

SUBJECT = np.zeros((6, 9), bool)
SUBJECT[1:4, 2:7] = True


def grey(low, high, dtype=np.uint8):
    return Image.fromarray(np.where(SUBJECT, high, low).astype(dtype))


def palette(numbers, colours=(0, 0, 0, 200, 0, 0, 0, 200, 0)):
    image = Image.fromarray(numbers.astype(np.uint8), "L").convert("P")
    image.putdata(numbers.astype(np.uint8).ravel().tolist())
    image.putpalette([*colours, *[90] * (768 - len(colours))])
    return image


VOID = np.where(SUBJECT, 2, 0)
VOID[0] = 255  # neither background nor object
MASKS = {
    "white on black": grey(0, 255),
    "soft": grey(100, 140),
    "zeros and ones": grey(0, 1),
    "of three channels": Image.fromarray(np.where(SUBJECT, 255, 0).astype(np.uint8)).convert("RGB"),
    "zeros and ones of three channels": Image.merge("RGB", [grey(0, 1)] * 3),
    "one bit": Image.fromarray(SUBJECT),
    "16 bits": grey(0, 65535, np.uint16),
    "16 bits, a dark background": grey(300, 40000, np.uint16),
    "zeros and ones of 16 bits": grey(0, 1, np.uint16),
    "transparency": Image.fromarray(np.dstack([np.full((6, 9, 3), 7), np.where(SUBJECT, 200, 20)]).astype(np.uint8)),
    "a palette of numbers": palette(np.where(SUBJECT, 2, 0)),
    "a palette with what is neither": palette(VOID),
    "black and white as a palette": palette(np.where(SUBJECT, 0, 1), (255, 255, 255, 0, 0, 0)),
}


@pytest.mark.parametrize("kind", MASKS)
def test_a_subject_is_found_however_it_is_written(tmp_path, kind):
    MASKS[kind].save(tmp_path / "a.png")
    np.testing.assert_array_equal(decode_mask(tmp_path / "a.png"), SUBJECT)


def test_black_is_no_subject(tmp_path):
    for dtype in (np.uint8, np.uint16):
        grey(0, 0, dtype).save(tmp_path / "a.png")
        assert not decode_mask(tmp_path / "a.png").any()


@pytest.mark.parametrize("lightest, dtype", [(2, np.uint8), (127, np.uint8), (20000, np.uint16)])
def test_what_is_neither_black_nor_light_is_refused(tmp_path, lightest, dtype):
    """A map of labels, or a faint mask: without a word it would be a clip without a subject."""
    grey(0, lightest, dtype).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png: nothing of the mask is lighter than half.*paint the subject white, or write 0 and 1"):
        decode_mask(tmp_path / "a.png")


def test_a_pixel_more_or_less_is_the_same_shape():
    assert same_shape((240, 426), (1080, 1920)) and same_shape((1080, 1920), (240, 426)) and same_shape((480, 854), (240, 427))
    assert not same_shape((240, 426), (426, 240)) and not same_shape((30, 20), (32, 48))
