"""The future states of a scene, in words: a multimodal language model is shown the first frame of each video, is told the
instruction, and says what will be seen from the beginning to the end. Done once; training then reads the texts
(`magvid.data.states`).

    python tools/predict_states.py --data=videos --model=llava-hf/llava-1.5-7b-hf --out=videos/states.json
    python tools/predict_states.py --config=configs/aid_ssv2.py --split=eval --model=models/llava --out=states.json --limit=500
    python tools/predict_states.py --image=a.png --instruction="push the cup to the left" --model=models/llava
    python tools/predict_states.py --config=sprites.py --out=states.json --score

So does AID (Xing et al., 2024, arXiv 2406.06465). The prompt is in our words; --prompt takes another. `--model` is any model of
transformers that answers in words to a picture and words ("image-text-to-text").

An answer is used if it is `--count` sentences in whatever language (`parse_states`). If not, the model is asked again: with a
reminder of the number, then with sampling. After `--retries` of that the instruction takes the place of every state.

An interrupted run goes on where it was; what has been asked is not asked again.
"""

import dataclasses
import hashlib
import itertools
import pathlib
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np
from jaxtyping import UInt8

from magvid.build import build
from magvid.data.folder import VideoFolder
from magvid.data.images import decode_image
from magvid.data.sprite_world import COLOURS, SHAPES
from magvid.data.states import INSTRUCTION, MODEL, Predicted, StateFile, digest_of, state_key
from magvid.data.text import Captions, split_words
from magvid.flags import Flag, Program, guarded, leave, load_config, parse, program_help
from magvid.runs import check_writable
from magvid.types import UserError
from magvid.video import SUFFIXES, read_video
from tools.hub import Batches, check_dtype, check_settings, device_of, dtype_of, imported, loading, place_of

PROMPT = (
    "You see the first frame of a short video and an instruction. Describe in exactly {count} short sentences, one per line, the "
    "visible state of the scene {moments}, if the instruction is carried out."
)
REMINDER = "Answer with exactly {count} lines, one short sentence each, and nothing else."
LLAVA = "USER: <image>\n{prompt} ASSISTANT:"  # of LLaVA-1.5, for a processor that has no template of its own
KEYS = ("instruction", "text", "caption")  # of a record: the first that says something is the instruction
LONGEST = 200  # characters of a state
TOKENS = 80  # of an answer, for each state: 200 characters of English are about 50
TEMPERATURE = 0.7
SAVE = 10  # seconds
TRIES = 100  # records without an instruction, one after the other from the first on, before that is an error

Frame = UInt8[np.ndarray, "h w 3"]
Ask = Callable[[Sequence[Frame], Sequence[str], int | None], list[str]]  # pictures, what is said of each, a seed or None -> answers

PROGRAM = Program(
    "python tools/predict_states.py",
    "Have a multimodal language model say what will be seen in videos, from their first frame and an instruction (AID).",
    [
        Flag("data", "str", None, "FOLDER", "of videos, whose instructions are in its captions.jsonl"),
        Flag("config", "str", None, "FILE.py[:ARG]", "in place of --data: the clips of a config"),
        Flag("split", "str", None, "train|eval", "which data of the config; default: train"),
        Flag("image", "str", None, "FILE", "in place of --data: one picture or video, whose states are printed"),
        Flag("instruction", "str", None, "TEXT", "what is to happen to the picture"),
        Flag("model", "str", None, "NAME|FOLDER", "a model of the hub, such as llava-hf/llava-1.5-7b-hf, or the folder of one"),
        Flag("out", "str", None, "FILE", "the .json file to write, or to go on with"),
        Flag("count", "int", 4, "N", "states of each video", 2),
        Flag("batch", "int", 4, "N", "videos at a time; halved where memory does not suffice", 1),
        Flag("limit", "int", None, "N", "only the first so many; default: all, of --split=eval as the config says", 1),
        Flag("retries", "int", 2, "N", "how often the model is asked again for an answer that is of use", 0),
        Flag("prompt", "str", None, "FILE", "what the model is told before the instruction, with {count} and {moments} in it"),
        Flag("device", "str", None, "NAME", "cuda, cuda:1, mps or cpu; default: cuda where there is one, else cpu"),
        Flag("dtype", "str", "auto", "NAME", "float32, float16, bfloat16, or auto: as the weights are stored"),
        Flag("score", "bool", False, "", "compare with the true states, which sprites have; without --model: those that are there"),
    ],
    [
        "--data=videos --model=llava-hf/llava-1.5-7b-hf --out=states.json",
        "--config=configs/aid_ssv2.py --split=eval --model=models/llava --out=states.json",
        '--image=a.png --instruction="push the cup to the left" --model=models/llava',
        "--config=sprites.py --out=states.json --score",
    ],
    "--config.data.train.source.path=videos",
)


def main(argv: list[str]) -> None:
    if {"--help", "-h"} & set(argv):
        print(program_help(PROGRAM))
        return
    values = parse(PROGRAM, argv, need="data|config|image")
    check_values(values)
    prompt = read_prompt(values.prompt, values.count)
    settings = dict(model=(values.model or "").rstrip("/"), count=values.count, prompt=prompt, dtype=values.dtype)
    if not values.model:
        found = StateFile.load(values.out)
        return rate(open_records(values, argv), values.out, found)
    found = open_states(values.out, settings) if values.out else StateFile(settings)
    records = open_records(values, argv)
    # only where something is to be asked: a model takes minutes to load
    ask = Batches(lambda: load_model(values.model, values.device, values.dtype, TOKENS * values.count), values.batch)
    predict(records, ask, found, values.out, values.retries)
    if values.image:
        picture = next(iter(records))
        print(*found.states[state_key(picture.digest, picture.instruction)].states, sep="\n")
    if values.score:
        rate(records, values.out, found)


def check_values(values: Any) -> None:
    """UserError, before anything slow, for flags that do not go together."""
    for name, needs in (("split", "config"), ("instruction", "image")):
        if getattr(values, name) and not getattr(values, needs):
            raise UserError(f"--{name} goes with --{needs}")
    if values.image and not (values.instruction or "").strip():
        raise UserError("--image needs --instruction: say what is to happen, such as --instruction='push the cup to the left'")
    if values.image and values.score:
        raise UserError("--score needs true states, which a picture does not have: leave it out")
    if not values.model and not values.score:
        raise UserError("--model is missing: give llava-hf/llava-1.5-7b-hf or another of its kind, or --score alone")
    if not values.out and not values.image:
        raise UserError("--out is missing: say where to write, such as --out=states.json")
    if values.split not in (None, "train", "eval"):
        raise UserError(f'--split must be train or eval, got "{values.split}"')
    check_dtype(values.dtype)
    if values.out:
        out = pathlib.Path(values.out).expanduser()
        if out.is_dir() or out.suffix != ".json":  # a video that is named here by mistake would be lost
            raise UserError(f"--out={values.out}: name a file *.json")
        check_writable(out.parent, "--out")


def open_states(out: str, settings: Mapping[str, Any]) -> StateFile:
    """What is there, or nothing yet; UserError where it was made with other settings."""
    if not pathlib.Path(out).expanduser().exists():
        return StateFile(dict(settings))
    found = StateFile.load(out)
    check_settings(out, "predicted", found.settings, settings)
    return found


# What is said -------------------------------------------------------------------------------------------------------


def read_prompt(file: str | None, count: int) -> str:
    """What the model is told before the instruction; from a file, or PROMPT."""
    text = PROMPT
    if file:
        try:
            text = pathlib.Path(file).expanduser().read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--prompt={file} cannot be read as UTF-8 text ({error})") from error
        if not text:
            raise UserError(f"--prompt={file} is empty: write what the model is to do, with {{count}} and {{moments}}")
        if "{count}" not in text:
            raise UserError(f"--prompt={file} does not say how many states there are: write {{count}} where the number belongs")
    return text.replace("{count}", str(count)).replace("{moments}", moments(count))  # not format: a prompt may have braces


def moments(count: int) -> str:
    """Those of `count` >= 2 states, evenly spread: "at the beginning, at one third, at two thirds and at the end"."""
    words = {Fraction(1, 2): "in the middle", Fraction(1, 3): "at one third", Fraction(2, 3): "at two thirds"}
    between = [Fraction(k, count - 1) for k in range(1, count - 1)]
    return ", ".join(["at the beginning", *(words.get(part, f"at {part}") for part in between)]) + " and at the end"


def question(prompt: str, instruction: str, count: int, attempt: int) -> str:
    told = [prompt, f"Instruction: {' '.join(instruction.split())}"]
    return "\n".join(told + ([REMINDER.format(count=count)] if attempt else []))


# What is answered ---------------------------------------------------------------------------------------------------

_NUMBER = r"(?:\d{1,3}|[一二三四五六七八九十]{1,3})"  # \d: the digits of every script
_DASH = r"[-–—]"
_LABEL = r"[^\d\s.,:;!?()。，、：；！？（）]{1,20}"  # a word, which \w would cut at the vowel signs of Indian scripts
_MARKS = [
    r"(?:[-*+]|–|—|➤|➢|→|>+|#{1,6})\s+",  # bullets, quoted lines and headings of markdown
    r"[•·‣▪●○◦]\s*",
    r"[\u2460-\u249b\u24eb-\u24ff\u2776-\u2793]\s*[.:：、)）]?\s*",  # circled numbers and their like
    r"\d\ufe0f?\u20e3\s*",  # a key cap
    rf"[(（\[【〔]?\s*{_NUMBER}\s*[)）\]】〕]\s*[.:：、]?\s*",
    r"\d{1,3}\s*(?:/\s*\d{1,3})?\s*[.．。:：、](?!\d)\s*",  # not 3.5 and 3:30
    rf"\d{{1,3}}\s?{_DASH}\s+",
    r"[一二三四五六七八九十]{1,3}\s*[、.．:：]\s*",
    r"[(（]?[a-hA-H][)）]\s+",
    rf"(?:{_LABEL}\s)?{_LABEL}\s?\d{{1,3}}(?:\s?/\s?\d{{1,3}})?\s?(?:[^\W\d_]{{1,2}})?\s?[:：](?!\d)\s*",  # Step 1:
    rf"{_LABEL}\s?\d{{1,3}}(?:[.．)）]|\s?{_DASH})\s+",  # Step 1. and Step 1 -
    rf"第{_NUMBER}\s?\S{{0,3}}?[:：、]\s*",
]
_MARK = re.compile("|".join(f"(?:{mark})" for mark in _MARKS))
_INLINE = re.compile(r"(?:^|\s)[(（]?\d{1,2}\s?[.)．）、:：](?:\s+|(?=[^\s\d]))")
# A point ends a sentence before white space only, unlike the signs of scripts that put none there.
_CLOSING = r"[\"'”’»)\]」』）】]*"
_END = re.compile(rf"[.!?…]+{_CLOSING}\s+|(?:[。！？｡।॥؟۔։።။។]|．(?!\d))+{_CLOSING}\s*")
_QUOTES = ('""', "''", "“”", "‘’", "„“", "„”", "«»", "»«", "‹›", "「」", "『』", "《》", "``", "**", "__")


def parse_states(answer: str, count: int) -> tuple[str, ...] | str:
    """The `count` states of an answer, or what is wrong with it.

    Each is a line without number, bullet, quotes and markdown, or, where all is one line, a sentence. Lines that end in a colon
    introduce others. There must be just so many, of at most LONGEST characters each, and not all the same.
    """
    told = [line for line in answer.splitlines() if says_something(line) and says_something(bare(line))]
    lines = sentences(told[0], count) if len(told) == 1 else list(map(bare, told))
    if len(lines) != count:
        return f"{len(lines)} states instead of {count}"
    if max(map(len, lines)) > LONGEST:
        return f"states of more than {LONGEST} characters"
    if len({line.casefold() for line in lines}) == 1:
        return f"{count} states that are all the same"
    return tuple(lines)


def says_something(line: str) -> bool:
    return any(c.isalnum() for c in line) and not line.rstrip("*_ ").endswith((":", "："))


def sentences(line: str, count: int) -> list[str]:
    """Of one paragraph: what stands between `count` numbers, or else its sentences."""
    numbered = [bare(part) for part in _INLINE.split(line)]
    parts = numbered if len(list(filter(says_something, numbered))) == count else map(bare, _END.sub(_break, line).split("\n"))
    return [part for part in parts if says_something(part)]


def _break(end: re.Match) -> str:
    return end[0].rstrip() + "\n"


def bare(line: str) -> str:
    """Without what is put around a sentence: numbers, bullets, quotes and markdown, in any order."""
    line = re.sub(r"\*\*|__|```+", "", " ".join(line.split()))
    line = re.sub(r"\*(\S|\S[^*]*\S)\*", r"\1", line)
    before = None
    while line != before:
        before = line
        line = line.strip(" \u200b\u200e\u200f\u202a\u202b\u202c\ufeff")
        line = _unquoted(_MARK.sub("", line, 1) if _MARK.match(line) else line)
    return line


def _unquoted(line: str) -> str:
    """A line of a list in JSON has a comma after the quotes."""
    inner = line.rstrip(",")
    for left, right in _QUOTES:
        if len(inner) > 1 and inner[0] == left and inner[-1] == right and not {left, right} & set(inner[1:-1]):
            return inner[1:-1]
    return line


# Records ------------------------------------------------------------------------------------------------------------


class Asked(NamedTuple):
    """What the model is asked about. truth: the true states, where the record has them."""

    file: str
    digest: str
    instruction: str
    frame: Frame
    truth: tuple[str, ...] | None = None


@dataclasses.dataclass
class Records:
    """All that is asked about, in order. asked(i): of record i, once for each of its instructions. What cannot be read or has
    no instruction is left out, and told of where it is among the first five; UserError where that is all.
    """

    total: int
    asked: Callable[[int], Iterable[Asked]]
    left_out: int = 0
    done: int = 0

    def __iter__(self) -> Iterator[Asked]:
        self.left_out, self.done, first, some = 0, 0, None, False
        for i in range(self.total):
            try:
                found = list(self.asked(i))
            except (UserError, OSError) as error:
                found, first = [], first or error
                self.left_out += 1
                if self.left_out <= 5:
                    print(f"left out: {error}", file=sys.stderr)
            some = some or bool(found)
            if not some and i + 1 in (self.total, TRIES):
                raise UserError(f"none of the first {i + 1} records can be asked about: {first}")
            yield from found
            self.done = i + 1


def open_records(values: Any, argv: list[str]) -> Records:
    if values.image:
        return of_picture(values.image, values.instruction)
    if values.data:
        return of_folder(values.data, values.limit)
    return of_config(parse(PROGRAM, argv, config=load_config(values.config)).config.to_dict(), values.split or "train", values.limit)


def of_picture(image: str, instruction: str) -> Records:
    """Or the first frame of a video."""
    path = pathlib.Path(image).expanduser()
    if not path.is_file():
        raise UserError(f"there is no picture {path}")
    frame = read_video(path, frames=1)[0][0] if path.suffix.lower() in SUFFIXES else decode_image(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Records(1, lambda i: [Asked(path.name, digest, instruction, frame)])


def of_folder(folder: str, limit: int | None) -> Records:
    """The first frame of each file, whole and at its own size, with each of its captions."""
    source = VideoFolder(folder, 2, 16, 16)
    captions = Captions(str(source.path / "captions.jsonl")).texts
    texts = {pathlib.PurePosixPath(name).as_posix(): found for name, found in captions.items()}  # as the source names its files

    def asked(i: int) -> Iterator[Asked]:
        name, digest, frames = source.whole(i)
        if not (told := [text for text in texts.get(name, ()) if text.strip()]):
            raise UserError(f'{name} has no instruction: add a line {{"file": "{name}", "caption": "..."}} to captions.jsonl')
        if (frame := next(frames, None)) is None:
            raise UserError(f"{name} holds no frames any more")
        yield from (Asked(name, digest, text, frame) for text in told)

    return Records(min(limit or len(source.files), len(source.files)), asked)


TEXTS = {f"magvid.data.{name}" for name in ("text:Captions", "text:Template", "states:States")}


def of_config(config: Mapping[str, Any], split: str, limit: int | None) -> Records:
    """The clips source[i] of a config's data, those of evaluation and not the windows that training may draw. Of the
    transforms only those are applied that make a text; the key of `States` is the one whose text it will look up.
    """
    data = (config.get("data") or {}).get(split)
    if not data:
        raise UserError(f"the config has no data.{split}: there is nothing to ask about")
    source = build(data["source"])
    limit = limit or (data.get("limit") if split == "eval" else None)
    makers, keys = [], list(KEYS)
    for spec in data.get("transforms") or ():
        if spec.get("target") in TEXTS:
            transform = build(spec)
            if spec["target"].endswith(":States"):
                keys = [transform.key]
                break
            makers.append(transform)

    def asked(i: int) -> Iterator[Asked]:
        record = {**source[i], "index": i}
        name, digest, truth = str(record.get("file") or f"record {i}"), digest_of(record), record.get("states")
        for told in wordings(record, makers):
            yield Asked(name, digest, instruction_of(told, keys, name), np.asarray(record["video"][0]), truth)

    return Records(min(limit or len(source), len(source)), asked)


def wordings(record: Mapping[str, Any], makers: Sequence[Any]) -> list[dict[str, Any]]:
    """The record with every text that training may draw for it."""
    found = [dict(record)]
    for maker in makers:
        texts = maker.texts.get(str(record.get("file", ""))) if isinstance(maker, Captions) else None
        if texts:
            found = [told | {"text": text} for told in found for text in texts]
        else:
            found = [maker(told, np.random.default_rng(0)) for told in found]  # which says what a file without text lacks
    return found


def instruction_of(record: Mapping[str, Any], keys: Sequence[str], name: str) -> str:
    for key in keys:
        if isinstance(record.get(key), str) and record[key].strip():
            return record[key]
    there = ", ".join(key for key, value in record.items() if isinstance(value, str) and value.strip()) or "none"
    raise UserError(f"{name} has no instruction: none of {', '.join(keys)} is a text; its texts are: {there}")


# Asking -------------------------------------------------------------------------------------------------------------


def predict(records: Records, ask: Batches, found: StateFile, out: str | None, retries: int) -> None:
    """Asks about the records that `found` lacks, and saves it to `out` every SAVE seconds and at the end, whatever ends it."""
    before, saved = set(found.states), time.monotonic()
    todo = _new(records, found.states)
    try:
        while group := list(itertools.islice(todo, ask.size)):
            found.states |= answers(group, ask, found.settings, retries)
            found.score = None  # it was of the others alone
            if time.monotonic() - saved > SAVE:
                print(f"{records.done} of {records.total} records", flush=True)
                if out:
                    found.save(out)
                saved = time.monotonic()
    finally:
        if out and set(found.states) != before:
            found.save(out)
    if out:
        repeated = sum(entry.how == INSTRUCTION for entry in found.states.values())
        told = [f"{repeated} of them the instruction repeated", f"{len(set(found.states) - before)} asked now"]
        told += [f"{records.left_out} left out"] if records.left_out else []
        print(f"{out}: states of {len(found.states)} videos and instructions, {', '.join(told)}")


def _new(records: Iterable[Asked], known: Mapping[str, Predicted]) -> Iterator[tuple[str, Asked]]:
    """Each once, by its key."""
    seen = set(known)
    for record in records:
        key = state_key(record.digest, record.instruction)
        if key not in seen:
            seen.add(key)
            yield key, record


def answers(
    group: Sequence[tuple[str, Asked]], ask: Ask, settings: Mapping[str, Any], retries: int
) -> dict[str, Predicted]:
    """Asks until every answer is of use: first as it is, then with a reminder, then also by sampling, with a fixed seed."""
    found, left, count = {}, dict(group), settings["count"]
    for attempt in range(retries + 1):
        texts = [question(settings["prompt"], record.instruction, count, attempt) for record in left.values()]
        replies = ask([record.frame for record in left.values()], texts, attempt if attempt > 1 else None)
        for (key, record), reply in zip(list(left.items()), replies, strict=True):
            states = parse_states(reply, count)
            if not isinstance(states, str):
                found[key] = Predicted(record.file, record.instruction, states, MODEL, attempt + 1)
                del left[key]
            elif attempt == retries:
                said = " ".join(reply.split())[:100]
                print(f'{record.file}: the instruction is repeated, for there are {states} in "{said}"', file=sys.stderr)
        if not left:
            break
    return found | {
        key: Predicted(record.file, record.instruction, (record.instruction,) * count, INSTRUCTION, retries + 1)
        for key, record in left.items()
    }


# The model ----------------------------------------------------------------------------------------------------------


def load_model(name: str, device: str | None, dtype: str, tokens: int) -> Ask:
    """A model of the hub or of a folder, which answers in at most so many tokens. UserError where there is none, or none that
    answers to pictures in words.
    """
    torch, auto_model, auto_processor = imported("AutoModelForImageTextToText", "AutoProcessor")
    where, device = place_of(name), device_of(torch, device)
    with loading(name, "answers to pictures and words", "llava-hf/llava-1.5-7b-hf"):
        processor = auto_processor.from_pretrained(where)
        model = auto_model.from_pretrained(where, dtype=dtype_of(torch, dtype)).eval().to(device)
        processor.tokenizer.padding_side = "left"  # all answers of a batch begin at one place
        processor.tokenizer.pad_token = processor.tokenizer.pad_token or processor.tokenizer.eos_token

    @torch.inference_mode()
    def ask(frames: Sequence[Frame], texts: Sequence[str], seed: int | None) -> list[str]:
        inputs = inputs_of(processor, frames, texts).to(device, dtype=model.dtype)  # whole numbers stay what they are
        how = dict(do_sample=False, temperature=None, top_p=None, top_k=None)
        if seed is not None:
            torch.manual_seed(seed)
            how = dict(do_sample=True, temperature=TEMPERATURE)
        ids = model.generate(**inputs, max_new_tokens=tokens, pad_token_id=processor.tokenizer.pad_token_id, **how)
        asked = inputs["input_ids"]
        if torch.equal(ids[:, : asked.shape[1]], asked):  # a model with an encoder repeats nothing
            ids = ids[:, asked.shape[1] :]
        return processor.batch_decode(ids, skip_special_tokens=True)

    return ask


def inputs_of(processor: Any, frames: Sequence[Frame], texts: Sequence[str]) -> Any:
    """Pictures and prompts as the model wants them, padded on the left."""
    from PIL import Image

    mark = getattr(processor, "image_token", None)
    texts = [text.replace(mark, " ") if isinstance(mark, str) else text for text in texts]  # one place for the picture alone
    if getattr(processor, "chat_template", None):
        said = lambda text: [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
        texts = [processor.apply_chat_template(said(text), add_generation_prompt=True, tokenize=False) for text in texts]
    else:
        texts = [LLAVA.format(prompt=text) for text in texts]
    begin = processor.tokenizer.bos_token
    once = dict(add_special_tokens=False) if begin and texts[0].startswith(begin) else {}
    images = [[Image.fromarray(np.ascontiguousarray(frame))] for frame in frames]
    return processor(text=texts, images=images, padding=True, return_tensors="pt", **once)


# Rating -------------------------------------------------------------------------------------------------------------


def rate(records: Records, out: str, found: StateFile) -> None:
    """Compares the states that are there with the true ones, prints a table, and keeps it in the file."""
    pairs = []
    for record in records:
        entry = found.states.get(state_key(record.digest, record.instruction))
        if entry and record.truth is None:
            raise UserError("--score needs records with true states, which sprites have: these have none")
        pairs += [(entry, record.truth)] if entry else []
        if len(pairs) == len(found.states):
            break  # the sources of sprites are long
    if not pairs:
        raise UserError(f"{out} has no states of these records: predict them first, with --model")
    found.score = score(pairs)
    found.save(out)
    print(table(found.score))


def score(pairs: Sequence[tuple[Predicted, Sequence[str]]]) -> dict[str, Any]:
    """Of each state over all records: `f1` of its words, and `named`, the share in which the colour and the shape of the true state
    are said. The same of the instruction, repeated for each state. UserError where the numbers of states differ.
    """
    count, true = len(pairs[0][0].states), len(pairs[0][1])
    if count != true:
        raise UserError(f"{count} states of each record were predicted, and the true ones are {true}: predict with --count={true}")
    measures = dict(f1=word_f1, named=names)

    def means(of: Callable[[Predicted], Sequence[str]]) -> dict[str, list[float]]:
        rows = lambda measure: [list(map(measure, of(entry), truth)) for entry, truth in pairs]
        return {name: [round(float(x), 4) for x in np.mean(rows(measure), axis=0)] for name, measure in measures.items()}

    by_model = sum(entry.how == MODEL for entry, _ in pairs)
    said = dict(predicted=means(lambda entry: entry.states), instruction=means(lambda entry: [entry.instruction] * count))
    return dict(records=len(pairs), by_model=by_model, **said)


def word_f1(predicted: str, true: str) -> float:
    """Harmonic mean of the shares of words that are right and that were found; a word counts as often as it occurs."""
    a, b = split_words(predicted), split_words(true)
    common = sum(min(a.count(word), b.count(word)) for word in set(a))
    return 2 * common / (len(a) + len(b)) if common else 0.0


def names(predicted: str, true: str) -> bool:
    """Whether it says the colour and the shape that the true state says."""
    return set(split_words(true)) & {*COLOURS, *SHAPES} <= set(split_words(predicted))


def table(numbers: Mapping[str, Any]) -> str:
    said = numbers["predicted"], numbers["instruction"]
    columns = [column for of in said for column in (of["f1"], of["named"])]
    rows = [[str(k), *(f"{x:.3f}" for x in row)] for k, row in enumerate(zip(*columns, strict=True), 1)]
    rows.append(["all", *(f"{np.mean(column):.3f}" for column in columns)])
    head = ["state", "word F1", "colour and shape", "instruction: F1", "colour and shape"]
    lines = ["  ".join(cell.rjust(len(title)) for cell, title in zip(row, head, strict=True)) for row in [head, *rows]]
    return "\n".join([*lines, f"{numbers['records']} records, {numbers['by_model']} of them answered by the model"])


if __name__ == "__main__":
    leave(guarded("predict_states", sys.argv[1:], main))
