"""Clips joined into one video: what lies between them is made by a model that fills gaps (MAVIN), window by window.

The last frames of a clip and the first of the next give way to a *gap*, which the model fills from what stands beside it. All other
frames stay as they are. Frames are read, made and written as they come, so that a long video takes no more memory than a short one.
"""

import collections
import dataclasses
import itertools
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from magvid import conditions, runs
from magvid.data.images import decode_image
from magvid.generator import Generator, clip_format
from magvid.runs import ClipFormat
from magvid.types import UserError
from magvid.video import fit, frame_rate, stream_video, write_video

Frame = UInt8[np.ndarray, "h w 3"]


@dataclasses.dataclass(frozen=True)
class Options:
    """What is joined and how, as the flags of `magvid connect` say it. None stands for the run's own."""

    clips: Sequence[str]  # files
    out: str
    refine: str | None = None  # frames at the end of a clip and at the beginning of the next that are made anew; one pair, or one per join
    prompt: str | None = None  # one for all joins, or several, divided by |: one per join, or one per clip
    negative: str | None = None
    actions: str | None = None  # a run that makes clips of a first frame and a text: there are no files then
    image: str | None = None  # files, divided by commas: the first frame of all action clips, or of each
    fps: float | None = None  # at which files are read, and the result is written
    size: str | None = None  # "HxW"
    steps: int | None = None
    guidance: float | None = None
    seed: int = 0

    def __post_init__(self):
        conditions.check_ranges(self, seed=(0, 2**32 - 1), fps=(0.01, 1000), guidance=(0, 1000), steps=(1, 1000))
        conditions.check_size(self.size)
        conditions.check_out(self.out, *self.clips)
        if (self.actions is None) != (self.image is None):
            raise ValueError("--actions and --image go together: a run that makes the clips, and what they begin with")
        if self.actions is not None and (self.clips or self.prompt is None):
            raise ValueError('--actions makes the clips: give one action each in --prompt="run|jump|eat", and no files')
        if self.count < 2:
            raise ValueError(f"there are two or more clips to join, and {self.count} {'is' if self.count == 1 else 'are'} given")
        self.pairs(2), self.texts()  # their errors

    @property
    def count(self) -> int:
        """Of the clips."""
        return len(self.clips) if self.actions is None else len(self.prompt.split("|"))

    def pairs(self, own: int) -> list[tuple[int, int]]:
        """How much of both sides of each join is made anew; `own`: frames of the run's usual gap."""
        if self.refine is None:
            return [(own - own // 2, own // 2)] * (self.count - 1)
        if not re.fullmatch(r"\d{1,4}(,\d{1,4})*", self.refine):
            raise ValueError(f"--refine={self.refine}: give two numbers, such as 6,6")
        numbers, joins = [int(n) for n in self.refine.split(",")], self.count - 1
        if len(numbers) not in (2, 2 * joins):
            raise ValueError(f"--refine={self.refine}: give two numbers, or two for each of the {joins} joins")
        return list(zip(numbers[::2], numbers[1::2], strict=True)) * (joins if len(numbers) == 2 else 1)

    def texts(self, own: str | None = None) -> list[str]:
        """What the model is told at each join; `own`: the text that it was trained on, where there was but one.

        Of one text per clip, "a, then b". The actions of a script are told to the model that makes the clips.
        """
        given, joins = [] if self.prompt is None else [text.strip() for text in self.prompt.split("|")], self.count - 1
        if len(given) > 1 and not all(given):
            raise ValueError(f'--prompt="{self.prompt}" has an empty text: say something between the |')
        if not given or (self.actions is not None and own is not None):
            return [own or ""] * joins
        if len(given) == self.count:
            return [f"{a}, then {b}" for a, b in itertools.pairwise(given)]
        if len(given) not in (1, joins):
            each = f"{joins} (one per join) or " if joins > 1 else ""
            raise ValueError(f'--prompt="{self.prompt}" has {len(given)} texts: give one, {each}{self.count} (one per clip)')
        return given * (joins if len(given) == 1 else 1)


class Clip(NamedTuple):
    """`frames` begins anew each time it is called; `length`: how many there are, where that is known."""

    name: str
    frames: Callable[[], Iterator[Frame]]
    length: int | None = None


class Window(NamedTuple):
    """What the model is shown to fill gap number `number`: frames before it, how many are missing, frames after it."""

    number: int
    before: list
    length: int
    after: list


def connect(run: runs.Run, options: Options, *, weights: str | None = None, trust: bool = False) -> list[pathlib.Path]:
    """Writes the joined video and returns where, in a list as the other commands do. UserError or ValueError, before anything is generated, for a run that fills no
    gaps, a gap it was not trained for (with the range), a clip that cannot be read or is too short, texts that do not fit.
    """
    out = pathlib.Path(options.out).expanduser()
    runs.check_writable(out.parent, "--out")
    clip = conditions.sized(clip_format(run), options.size)
    script = ActionScript.open(options, trust) if options.actions else None
    fps = options.fps or _rate(clip, options.clips)
    clips = script.clips() if script else [file_clip(c, clip, fps) for c in options.clips]
    told = texts(run, options)
    row = conditions.blank(clip) | told[0]
    decoding = dict(steps=options.steps, guidance=options.guidance)
    model = Generator.open(run, decoding=decoding, batch=1, weights=weights, like=row, trust=trust)
    objective = model.programs.objective
    if not getattr(objective, "fills_gaps", False):
        raise UserError(f"{run.path} fills no gaps between clips: give a run of configs/mavin_*.py (part=transition)")
    if options.negative and not objective.sampling.guidance:
        raise UserError(f"--negative: {run.path} is sampled without guidance, which alone leads away from it: give --guidance=G as well")
    pairs = options.pairs(int(np.sum(~objective.noising.usual(clip.frames))))
    starts = [_starts(objective, pair, clip.frames) for pair in pairs]
    _check_lengths(clips, pairs, starts, clip.frames, fps)
    clips = script.make(options, clip, trust) if script else clips

    def fill(window: Window) -> list[Frame]:
        video, known = row["video"].copy(), np.ones((1, clip.frames), bool)
        start, end = len(window.before), len(window.before) + window.length
        video[0, :start], video[0, end:], known[0, start:end] = window.before, window.after, False
        rows = dict(video=video, known=known, index=np.array([window.number]), task=np.zeros(1, np.int32), label=row["label"])
        made = model.generate(rows | told[window.number], options.seed)[0, start:end]
        print(f"joined {clips[window.number].name} and {clips[window.number + 1].name}: {window.length} frames made")
        return list(made)

    write_video(out, joined(clips, pairs, starts, clip.frames, fill, fps), fps)
    return [out]


def joined(
    clips: Sequence[Clip],
    pairs: Sequence[tuple[int, int]],
    starts: Sequence[range],
    t: int,
    fill: Callable[[Window], list],
    fps: float,
) -> Iterator[Any]:
    """The frames of all clips one after the other, with `fill` between them.

    The gap of a join takes the last a and the first b frames (`pairs`); in the window of `t` frames that `fill` sees, it begins at one of
    `starts`, as near to the middle as the clips allow. Frames that were made before may be seen again. UserError where clips are too short.
    """
    tail: collections.deque = collections.deque()  # the end of the video so far, of which a part may be made anew
    stream, own, begun = clips[0].frames(), 0, 0
    for i, ((a, b), allowed) in enumerate(zip(pairs, starts, strict=True)):
        hold = a + allowed[-1]
        for own, frame in enumerate(stream, begun + 1):
            tail.append(frame)
            if len(tail) > hold:
                yield tail.popleft()
        while len(tail) > hold:  # the last join left more than this one may need
            yield tail.popleft()
        own = max(own, begun)
        if i and own <= (anew := pairs[i - 1][1] + a):
            raise UserError(
                f"{clips[i].name} has {own} frames, read at {fps:g} per second, and {anew} of them are made anew, so that none would be left: take "
                "a longer clip, a higher --fps, or another --refine"
            )
        length, stream = a + b, clips[i + 1].frames()
        head = list(itertools.islice(stream, b + t - length - allowed[0]))
        own, begun = 0, len(head)
        before, after = len(tail) - a, len(head) - b
        fits = [s for s in allowed if s <= before and t - length - s <= after]
        if not fits:
            beside = f"beside a gap of {length} (read at {fps:g} per second)"
            remedy = "take longer clips, a higher --fps, or another --refine"
            for clip, has, needed in ((clips[i], before, allowed[0]), (clips[i + 1], after, t - length - allowed[-1])):
                if has < needed:
                    count = f"{max(has, 0)} frame{'' if has == 1 else 's'}"
                    raise UserError(f"{clip.name} has {count} to show {beside}; the model needs at least {needed} of it: {remedy}")
            raise UserError(f"{clips[i].name} and {clips[i + 1].name} have {before} and {after} frames to show {beside}; the model needs {t - length}: {remedy}")
        start = min(fits, key=lambda s: abs(2 * s + length - t))
        kept = list(tail)[: len(tail) - a]
        gap = fill(Window(i, kept[len(kept) - start :], length, head[b : b + t - length - start]))
        tail = collections.deque([*kept, *gap, *head[b:]])
    yield from tail
    yield from stream


def _starts(objective: Any, pair: tuple[int, int], t: int) -> range:
    try:
        return objective.gap_starts(sum(pair), t)
    except ValueError as error:
        raise ValueError(f"--refine={pair[0]},{pair[1]}: {error}") from None


def _check_lengths(clips: Sequence[Clip], pairs: Sequence[tuple[int, int]], starts: Sequence[range], t: int, fps: float) -> None:
    """UserError for clips that cannot be joined. Reads no more of a clip than could matter."""
    enough = 2 * (t + max(max(pair) for pair in pairs))
    count = lambda clip: sum(1 for _ in itertools.islice(clip.frames(), enough)) if clip.length is None else clip.length
    counted = [Clip(c.name, lambda n=count(c): iter(range(n))) for c in clips]
    for _ in joined(counted, pairs, starts, t, lambda window: [None] * window.length, fps):
        pass


# Clips --------------------------------------------------------------------------------------------------------------


def _rate(clip: ClipFormat, files: Sequence[str]) -> float:
    """At which all clips are read: the run's own, of the first file."""
    return clip.shown_rate(frame_rate(conditions.existing(files[0], "video"))) if files else (clip.fps or conditions.FPS) / clip.stride


def file_clip(file: str, clip: ClipFormat, fps: float) -> Clip:
    """A file at `fps`, at the size and shape of the model's clips."""
    path = conditions.existing(file, "video")
    next(stream_video(path, fps))  # a file that is no video is an error before the model is loaded
    return Clip(path.name, lambda: (fit(frame[None], clip.height, clip.width, clip.keep_aspect)[0] for frame in stream_video(path, fps)))


class ActionScript(NamedTuple):
    """Clips that a run makes, one for each action, from first frames."""

    run: runs.Run
    actions: Sequence[str]
    pictures: Sequence[np.ndarray]
    format: ClipFormat
    told: Sequence[Mapping[str, np.ndarray]]

    @classmethod
    def open(cls, options: Options, trust: bool) -> "ActionScript":
        """UserError for a run that is told no text, and for pictures that are not there."""
        run = runs.open_run(options.actions, trust)
        tokenizer = conditions.find_tokenizer(run.config)
        if tokenizer is None:
            raise UserError(f"--actions: {run.path} is told no text")
        actions, files = [text.strip() for text in options.prompt.split("|")], options.image.split(",")
        if len(files) not in (1, len(actions)):
            raise UserError(f"--image names {len(files)} pictures for {len(actions)} actions: give one, or one for each")
        format = clip_format(run)
        pictures = [decode_image(conditions.existing(f, "picture"))[None] for f in files] * (len(actions) if len(files) == 1 else 1)
        pictures = [fit(p, format.height, format.width, format.keep_aspect) for p in pictures]
        told = [conditions.words(tokenizer, action, options.negative or "") for action in actions]
        return cls(run, actions, pictures, format, told)

    def clips(self) -> list[Clip]:
        """How long they will be."""
        return [Clip(f'"{action}"', lambda: iter(()), self.format.frames) for action in self.actions]

    def make(self, options: Options, clip: ClipFormat, trust: bool) -> list[Clip]:
        """The clips, made at the run's own size, at that of `clip`. UserError for a run that needs more than a first frame."""
        row = conditions.blank(self.format) | self.told[0]
        decoding = dict(steps=options.steps, guidance=options.guidance)
        model = Generator.open(self.run, decoding=decoding, batch=1, like=row, trust=trust)
        if not any(getattr(model.programs.objective, "predicts", ())):
            raise UserError(f"--actions: {self.run.path} does not go on from a first frame; give a run of configs/mavin_*.py:part=action")
        made = []
        for i, (action, picture, words) in enumerate(zip(self.actions, self.pictures, self.told, strict=True)):
            video = row["video"].copy()
            video[0, 0] = picture[0]
            rows = dict(video=video, index=np.array([i]), task=np.zeros(1, np.int32), label=row["label"])
            frames = fit(model.generate(rows | words, options.seed)[0], clip.height, clip.width, keep_aspect=True)
            print(f'made "{action}": {len(frames)} frames')
            made.append(Clip(f'"{action}"', lambda frames=frames: iter(frames)))
        return made


# Words --------------------------------------------------------------------------------------------------------------


def texts(run: runs.Run, options: Options) -> list[Mapping[str, np.ndarray]]:
    """What the model is told at each join, as rows of a batch: nothing where it is told no text."""
    tokenizer = conditions.find_tokenizer(run.config)
    if tokenizer is None:
        if given := [name for name in ("prompt", "negative") if getattr(options, name) is not None and options.actions is None]:
            raise UserError(f"--{given[0]}: {run.path} is told no text; leave it out")
        return [{}] * (options.count - 1)
    said = options.texts(conditions.find_text(run.config))
    return [conditions.words(tokenizer, text, options.negative or "") for text in said]
