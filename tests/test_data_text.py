"""Tokenizers: what a text becomes, what is refused, and the vocabulary of the sprites."""

import json
import pickle
import sys

import numpy as np
import pytest

from configs import clip_sprites
from magvid.build import build
from magvid.data import pipeline
from magvid.data.sprites import Sprites
from magvid.data import folder
from magvid.data.text import Captions, DistinctTexts, HFTokenizer, OneOf, Template, WordTokenizer, split_words, words_of
from magvid.types import UserError

RNG = np.random.default_rng(0)
TINY = WordTokenizer(("a", "left", "moves", "red"), length=7)


def test_ids_by_hand():
    assert split_words("Turned by 12 degrees, a RED_disc") == "turned by 1 2 degrees , a red _ disc".split()
    assert TINY.size == 8 and TINY.eos == 7
    np.testing.assert_array_equal(TINY.encode("A red  moves left"), [1, 3, 6, 5, 4, 7, 0])
    np.testing.assert_array_equal(TINY.null, [1, 7, 0, 0, 0, 0, 0])
    assert TINY.encode("a").dtype == np.int32 and TINY.decode(TINY.encode("a red moves")) == "a red moves"
    assert words_of(["moves left", "a red", "a left"]) == TINY.words


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match='of 4 words lacks "blue" of "a blue red": it has '):
        TINY.encode("a blue red")
    with pytest.raises(ValueError, match="has 6 words, and length=7 has room for 5"):
        TINY.encode("a a a a a a")
    with pytest.raises(ValueError, match="has no 'text' to tokenize; it has caption: set `key`"):
        TINY({"caption": "a"}, RNG)
    with pytest.raises(ValueError, match=r"words has \['Red', '12'\]"):
        WordTokenizer(("Red", "12"), 4)
    with pytest.raises(ValueError, match="list of different words"):
        WordTokenizer(("a", "a"), 4)
    known = WordTokenizer(TINY.words, 7, unknown=True)
    np.testing.assert_array_equal(known.encode("a blue red"), [1, 3, 2, 6, 7, 0, 0])
    assert known.decode(known.encode("a blue red")) == "a ? red"


def test_as_a_transform_of_one_text_or_several():
    record = TINY({"text": "a left", "label": 3}, RNG)
    assert record["label"] == 3 and record["text"] == "a left"
    np.testing.assert_array_equal(record["text_ids"], TINY.encode("a left"))
    np.testing.assert_array_equal(record["null_ids"], TINY.null)
    several = WordTokenizer(TINY.words, 7, key="states")({"states": ("a", "red")}, RNG)["text_ids"]
    np.testing.assert_array_equal(several, [TINY.encode("a"), TINY.encode("red")])
    assert pickle.loads(pickle.dumps(TINY)) == TINY and hash(TINY) == hash(WordTokenizer(list(TINY.words), 7))


def test_the_sprites_vocabulary_holds_every_word_of_every_world():
    found = []
    for world, sequence, frames in (("full", 0.0, 8), ("full", 1.0, 24), ("small", 0.0, 8)):
        source = Sprites(world=world, sequence=sequence, frames=frames, keys=("caption", "instruction", "states"))
        for i in range(150):
            record = source[i]
            found += [record["caption"], record["instruction"], *record["states"]]
    words = words_of(found)
    assert set(words) <= set(clip_sprites.WORDS)
    tokenizer = build(clip_sprites.TOKENIZER)
    assert tokenizer.size == clip_sprites.VOCABULARY
    for text in found:
        assert tokenizer.decode(tokenizer.encode(text)) == " ".join(split_words(text))
    # what 450 clips need not show: the parts' names, as the world's tables have them
    world = Sprites().world
    assert set(words_of([*world.colours, *world.shapes, *world.tones])) <= set(clip_sprites.WORDS)


def test_batches_hold_ids():
    source = Sprites(world="small", frames=4, height=16, width=16, keys=("video", "caption"))
    loader = pipeline.Loader(source, 3, transforms=(build(clip_sprites.TOKENIZER),))
    batch = next(loader)
    loader.close()
    assert batch["text_ids"].shape == (3, clip_sprites.LENGTH) and batch["text_ids"].dtype == np.int32


def test_a_gallery_of_different_texts():
    source = Sprites(world="small", frames=4, height=16, width=16, keys=("caption", "label"))
    gallery = DistinctTexts(source, 40, key="caption")
    texts = [gallery[i]["caption"] for i in range(len(gallery))]
    assert len(set(texts)) == 40 and texts[0] == source[0]["caption"] and list(gallery.numbers) == sorted(gallery.numbers)
    assert gallery.classes == source.classes
    with pytest.raises(IndexError):
        gallery[40]
    with pytest.raises(UserError, match="73 records of different caption were asked for, but there are"):
        DistinctTexts(source, 73, key="caption", search=300)[0]


def test_a_published_tokenizer_that_is_not_there(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="there is no tokenizer folder /nowhere"):
        HFTokenizer("/nowhere").encode("a")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r'pip install -e "\.\[convert\]"'):
        HFTokenizer(str(tmp_path)).encode("a")


def test_captions_of_files(tmp_path):
    path = tmp_path / "captions.jsonl"
    path.write_text('{"file": "a.mp4", "caption": "a cat"}\n\n{"file": "b.mp4", "caption": "one"}\n{"file": "b.mp4", "caption": "two"}\n')
    transform = Captions(str(path))
    assert {name: list(texts) for name, texts in folder._captions(tmp_path).items()} == transform.texts  # one file serves both
    assert transform({"file": "a.mp4"}, RNG)["text"] == "a cat"
    assert {transform({"file": "b.mp4"}, np.random.default_rng(i))["text"] for i in range(9)} == {"one", "two"}
    with pytest.raises(UserError, match='has no text of "c.mp4": add a line'):
        transform({"file": "c.mp4"}, RNG)
    path.write_text('{"file": "a.mp4"}\n')
    with pytest.raises(UserError, match="captions.jsonl line 1 is not"):
        Captions(str(path)).texts
    with pytest.raises(UserError, match="there are no captions"):
        Captions(str(tmp_path / "none.jsonl")).texts


def test_one_of_several_texts():
    record = {"caption": "a red disc moves left", "motion": "moves left", "label": 3}
    drawn = [OneOf(("caption", "motion"))(record, np.random.default_rng(i)) for i in range(9)]
    assert {r["text"] for r in drawn} == {"a red disc moves left", "moves left"} and all(record.items() <= r.items() for r in drawn)
    assert OneOf(["motion"])(record, RNG)["text"] == "moves left"
    for key in ("title", "label"):
        with pytest.raises(UserError, match=f'no text "{key}"; it has caption, motion, label'):
            OneOf(("caption", key))(record, RNG)
    with pytest.raises(ValueError, match="name the texts"):
        OneOf(())


def test_texts_by_a_template():
    record = {"action": "running", "animal": "horse", "label": 3}
    assert Template("a {animal} {action}, {{wild}}")(record, RNG) == record | {"text": "a horse running, {wild}"}
    assert Template("horse movement")({"label": 3}, RNG)["text"] == "horse movement"
    assert Template("")({}, RNG)["text"] == ""
    assert build(dict(target="magvid.data.text:Template", template="{text}!"))({"text": "run"}, RNG)["text"] == "run!"
    for template in ("a horse {verb}", "a horse {label}"):
        with pytest.raises(UserError, match='needs a text "(verb|label)" of each record; its texts are: action, animal'):
            Template(template)(record, RNG)
    with pytest.raises(UserError, match="its texts are: none"):
        Template("{action}")({"label": 3}, RNG)
    for template, message in (("a {", "is no template"), ("{}", 'has "{}": braces hold the name'), ("{a.b}", "braces hold"), ("{0}", "braces")):
        with pytest.raises(ValueError, match=message):
            Template(template)
    template = Template("a {animal}")
    assert pickle.loads(pickle.dumps(template)) == template == eval(repr(template))


@pytest.mark.full
def test_a_published_tokenizer_equals_its_own_library(tmp_path):
    from helpers_torch import transformers

    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"{c}</w>" for c in "abcdefghijklmnopqrstuvwxyz")]
    tokens = [*letters, "re", "red</w>", "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
    own = transformers.CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    own.save_pretrained(tmp_path / "tokenizer")
    tokenizer = HFTokenizer(str(tmp_path / "tokenizer"), length=9, key="caption")
    for text in ("a red cat", "", "a very long text of many words that is cut"):
        expected = own(text, padding="max_length", truncation=True, max_length=9)["input_ids"]
        np.testing.assert_array_equal(tokenizer({"caption": text}, RNG)["text_ids"], expected)
    assert tokenizer.count("a red cat") == 2 + 2 + 3 and tokenizer.count("a very long text") == 2 + 13
    np.testing.assert_array_equal(tokenizer.null, own("", padding="max_length", max_length=9)["input_ids"])
    assert tokenizer.size == len(own) and tokenizer.encode("a red").dtype == np.int32
    with pytest.raises(UserError, match="does not hold a tokenizer"):
        HFTokenizer(str(tmp_path / "..")).encode("a")
