"""Videos of a trained run: conditions from a video file or evaluation clips -> a file per sample, a labelled grid."""

import dataclasses
import difflib
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from magvid import runs
from magvid.generator import Clips, Generator, clip_format
from magvid.pictures import labelled_grid, steps_picture
from magvid.runs import ClipFormat
from magvid.types import UserError
from magvid.video import read_video, resize_crop, upscale, write_image, write_video

FORMATS = ("mp4", "gif", "webm", "png")
VISIBLE = 128  # pixels: smaller videos are enlarged to at least this height
NUMBER = 4


@dataclasses.dataclass(frozen=True)
class Options:
    """What to generate, as the flags of `magvid sample` say it. None stands for the run's own."""

    tasks: Sequence[str] | None = None
    video: str | None = None  # a file; None: evaluation clips
    start: float = 0.0  # seconds of the file that are skipped
    fps: float | None = None  # at which the file is read
    index: int = 0  # the first evaluation clip
    number: int | None = None  # of evaluation clips, or of samples for the file; None: 4, or what clips there are
    label: str | None = None  # id or name of a class
    size: str | None = None  # "HxW" pixels to which the file is cut and resized
    frames: int | None = None  # of the result
    overlap: int | None = None  # frames that the windows of a long video share
    steps: int | None = None
    temperature: float | None = None
    schedule: str | None = None
    guidance: float | None = None
    intermediates: bool = False  # draw the decoding steps
    seed: int = 0
    out: str | None = None  # folder
    format: str = "mp4"  # png: of videos of one frame
    scale: int = 0  # factor of enlargement; 0: to a visible size

    def __post_init__(self):
        if self.format not in FORMATS:
            raise ValueError(f'format "{self.format}" is unknown: use {", ".join(FORMATS)}')
        if self.tasks is not None and not self.tasks:
            raise ValueError("no task is named: give names such as FP,FI, or leave it out for all")
        if self.tasks is not None and len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"--task={','.join(self.tasks)} names a task twice; for several samples of it give --number")
        ranges = dict(
            seed=(0, 2**32 - 1),
            number=(1, 1000),
            scale=(0, 64),
            fps=(0.01, 1000),
            start=(0, 1e6),
            temperature=(0, 1e6),
            guidance=(0, 1000),
            frames=(1, 10000),
        )
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:  # NaN fails as well
                raise ValueError(f"{name} must lie between {low:g} and {high:g}, got {value:g}")
        read = {name: getattr(self, name) for name in ("start", "fps", "size") if getattr(self, name) not in (None, 0)}
        if self.video is None and read:
            flags = " ".join(f"--{name}={value}" for name, value in read.items())
            raise ValueError(f"{flags}: this says how a file is read; give one with --video")
        if self.size is not None and not re.fullmatch(r"[1-9]\d{0,4}x[1-9]\d{0,4}", self.size):
            raise ValueError(f'--size={self.size}: give height and width in pixels, such as 64x96')
        if self.overlap is not None and self.frames is None:
            raise ValueError("--overlap is of the windows of a long video: say its length with --frames")
        if self.intermediates and self.frames is not None:
            raise ValueError("--intermediates shows how one clip is decoded: leave out --frames")
        if self.video is not None and self.index:
            raise ValueError("--index counts evaluation clips, and --video takes the place of them: give one of both")

    @property
    def suffix(self) -> str:
        """Of the files' names: the seed, and what else was asked for, so that other settings do not overwrite them."""
        named = ("label", "size", "frames", "overlap", "steps", "temperature", "schedule", "guidance")
        asked = {"seed": self.seed, **{name: getattr(self, name) for name in named}}
        text = "".join(f"_{name}{value}" for name, value in asked.items() if value is not None)
        return re.sub(r"[^\w.+-]+", "-", text)

    @property
    def decoding(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("steps", "temperature", "schedule", "guidance")}

    def sized(self, clip: ClipFormat) -> ClipFormat:
        """The format at the wanted height and width."""
        height, width = map(int, self.size.split("x")) if self.size else (clip.height, clip.width)
        return dataclasses.replace(clip, height=height, width=width)


def sample_run(
    run: runs.Run, options: Options, *, weights: str | None = None, trust: bool = False
) -> list[pathlib.Path]:
    """Writes <out>/<task>_<clip>_seed<seed>.<format> for each task and clip, and a grid; returns the paths, grid last.
    Settings other than the run's are part of the names (_frames64, _guidance2, ...).

    The grid's columns are condition (padded), generated and real; where nothing but a class is given, generated alone,
    and as many samples as are asked for. A run without tasks gives reconstructions, of a file at any `size` and number
    of `frames`. Longer or shorter videos than the run's clips come from frame prediction, over and over: what of them is
    beyond the real clip has white beside it. `intermediates` adds <task>_<clip>_seed<seed>_decoding.png. A video is read,
    and the size of what comes of a class alone taken, as the run folder's data.json says, so that the data set itself
    may be gone. UserError or ValueError, in one sentence, for a run, video, task, class, size or folder that does not
    fit.
    """
    out = pathlib.Path(options.out).expanduser() if options.out else run.path / "samples"
    runs.check_writable(out, "--out")
    clip = None
    if options.video is not None:
        clip = options.sized(clip_format(run))
    elif options.label is not None:
        clip = run.clip
    model = Generator.open(
        run,
        options.tasks,
        decoding=options.decoding,
        batch=options.number or NUMBER,
        weights=weights,
        clip=clip,
        trust=trust,
    )
    _check_fit(model, options)
    _say_what_was_not_learned(model, options)
    from_class = options.label is not None and all(model.programs.objective.blind)
    if options.video is None and not from_class:
        clips = Clips.of(model.config)
        shown, classes = _from_clips(clips, options), clips.classes
    else:
        clip = clip or Clips.of(model.config).format
        classes = clip.classes
        shown = _from_class(clip, options) if from_class else _from_video(clip, options, model)
    if options.label is not None:
        label = find_class(options.label, classes, model.programs.objective.classes)
        shown.rows["label"] = np.full_like(shown.rows["label"], label)
    frames = (options.frames if model.tasks else None) or shown.rows["video"].shape[1]
    if options.format == "png" and frames > 1:
        raise UserError(f"--format=png is of images, and these videos have {frames} frames: use mp4, gif or webm")
    if not model.tasks:
        made = {"reconstruction": {"reconstruction": model.reconstruct(shown.rows), "real": shown.real}}
        return _write(out, made, shown, options)
    tasks = _chosen(model, options, run)
    pictures = _write_steps(out, model, tasks, shown, options) if options.intermediates else []
    made = {task: _generate(model, i, shown, options, from_class) for i, task in tasks.items()}
    return [*pictures, *_write(out, made, shown, options)]


def _check_fit(model: Generator, options: Options) -> None:
    """UserError for a flag that would do nothing."""
    objective, what = model.programs.objective, ", ".join(model.tasks) or "this run"
    if options.label is not None and not any(getattr(objective, "labelled", ())):
        raise UserError(f"--label={options.label}: {what} is not given a class; leave it out")
    if model.tasks or (options.video is not None and not options.intermediates and options.overlap is None):
        return
    if options.intermediates:
        raise UserError("--intermediates: a tokenizer reconstructs at once, without decoding steps; leave it out")
    if options.overlap is not None:
        raise UserError(f"--overlap={options.overlap}: a tokenizer reads a video as a whole, whatever its length")
    if options.frames is not None:
        raise UserError(
            f"--frames={options.frames}: evaluation clips have the length that the config says "
            "(--config.data.eval.source.frames=N, or of data.train); for a file give --video"
        )


def _say_what_was_not_learned(model: Generator, options: Options) -> None:
    if options.guidance and getattr(model.programs.objective, "condition_drop", None) == 0:
        print(
            f"--guidance={options.guidance:g}: this run was trained with objective.condition_drop=0, so it has hardly "
            "learned what it is guided away from, videos without their condition"
        )


def _chosen(model: Generator, options: Options, run: runs.Run) -> dict[int, str]:
    """The tasks that can be done, by number; says which of the run's are left out, or raises where they were named."""
    objective, chosen = model.programs.objective, {}
    for i, task in enumerate(model.tasks):
        lacks = None
        if options.video is not None and options.label is None and objective.labelled[i]:
            lacks = "needs a class: give --label, by number or by name"
        elif options.frames is not None and not objective.predicts[i]:
            lacks = "makes clips of one length: --frames is for frame prediction, FP or CFP"
        if lacks is None:
            chosen[i] = task
        elif options.tasks is not None:
            raise UserError(f"task {task} {lacks}")
        else:
            print(f"{task} is left out: it {lacks}")
    if not chosen:
        raise UserError(f"none of the tasks of {run.path} is left: {', '.join(model.tasks)}")
    return chosen


def _generate(
    model: Generator, task: int, shown: "Shown", options: Options, alone: bool
) -> dict[str, UInt8[np.ndarray, "n t h w 3"]]:
    """{column: videos of one length} of a task."""
    rows = shown.of(task)
    if options.frames is None:
        generated = model.generate(rows, options.seed)
    else:
        generated = model.extend(rows, options.frames, options.overlap, options.seed)
    if alone:
        return {"generated": generated}
    condition, frames = model.condition(rows)[0], generated.shape[1]
    beyond = [(0, 0), (0, max(0, frames - condition.shape[1])), *[(0, 0)] * 3]
    condition = np.pad(condition, beyond, mode="edge")[:, :frames]  # as its own frames are padded
    beyond[1] = (0, max(0, frames - shown.real.shape[1]))
    real = np.pad(shown.real, beyond, constant_values=255)[:, :frames]
    return {"condition": condition, "generated": generated, "real": real}


def _write_steps(out: pathlib.Path, model: Generator, tasks: Mapping[int, str], shown: "Shown", options: Options):
    """A picture of the decoding steps for each task and clip."""
    paths = []
    for i, task in tasks.items():
        steps = model.steps(shown.of(i), options.seed)
        for j, name in enumerate(shown.names):
            paths.append(out / f"{_stem(task, name, options)}_decoding.png")
            one = type(steps)(*(part[j] for part in steps))
            write_image(paths[-1], steps_picture(one, f"{task} {name}, seed {options.seed}"))
    return paths


def _stem(task: str, name: str, options: Options) -> str:
    return f"{task.replace(':', '-')}_{name}{options.suffix}"


def _write(
    out: pathlib.Path, made: Mapping[str, Mapping[str, np.ndarray]], shown: "Shown", options: Options
) -> list[pathlib.Path]:
    paths, rows, labels = [], [], []
    for task, videos in made.items():
        generated = videos.get("generated", videos.get("reconstruction"))
        for i, name in enumerate(shown.names):
            paths.append(out / f"{_stem(task, name, options)}.{options.format}")
            write_video(paths[-1], upscale(generated[i], options.scale or -(-VISIBLE // generated.shape[2])), shown.fps)
            rows.append([v[i] for v in videos.values()])
            labels.append(f"{task} {name}")
    columns = list(next(iter(made.values())))
    short = next(iter(made)) if len(made) == 1 else f"{len(made)}tasks"
    paths.append(out / f"grid_{_stem(short, shown.names[0], options)}.{options.format}")
    write_video(paths[-1], labelled_grid(rows, columns, labels), shown.fps)
    return paths


# Conditions ---------------------------------------------------------------------------------------------------------


class Shown(NamedTuple):
    """What the model is shown: rows with clips of its own size, their names, frames per second, and the real videos (n t
    h w 3), which may be longer.
    """

    rows: dict[str, np.ndarray]
    names: list[str]
    fps: float
    real: UInt8[np.ndarray, "n t h w 3"]

    def of(self, task: int) -> dict[str, np.ndarray]:
        return {**self.rows, "task": np.full(len(self.names), task, np.int32)}


def _from_class(clip: ClipFormat, options: Options) -> Shown:
    """Where no picture is given."""
    index = np.arange(options.index, options.index + (options.number or NUMBER))
    video = np.zeros((len(index), clip.frames, clip.height, clip.width, 3), np.uint8)
    rows = {"video": video, "label": np.zeros(len(index), np.int32), "index": index}
    return Shown(rows, [f"{i:05d}" for i in index], 8.0, video)


def _from_clips(clips: Clips, options: Options) -> Shown:
    """Evaluation clips."""
    count = options.number or max(1, min(NUMBER, len(clips.source) - options.index))
    rows = next(clips.batches(options.index, count, count))
    return Shown(rows, [f"{i:05d}" for i in rows["index"]], 8.0, rows["video"])


def _from_video(clip: ClipFormat, options: Options, model: Generator) -> Shown:
    """The beginning of a file, cut to the size of the clips, `number` times. Says what was done to it.

    A tokenizer is shown `options.frames`, tasks a clip, of which frame prediction needs no more than it is given.
    """
    height, width, stride = clip.height, clip.width, clip.stride
    t = clip.frames if model.tasks else options.frames or clip.frames
    least = model.programs.objective.given_frames(t) if model.tasks else t
    needed = (least - 1) * stride + 1
    wanted = (max(t, options.frames or t) - 1) * stride + 1
    path = pathlib.Path(options.video).expanduser()
    if not path.is_file():
        raise UserError(f"there is no video {options.video}")
    video, fps = read_video(path, options.fps or clip.fps, wanted, options.start)
    if len(video) < needed:
        raise UserError(
            f"{options.video} is too short: {len(video)} frames from {options.start:g} s on, this run needs {needed}; "
            "take a longer one or another --fps"
        )
    resized = resize_crop(video[::stride], height, width)
    h, w = video.shape[1:3]
    print(
        f"{path.name}: {min(t, len(resized))} frames at {fps / stride:g} per second, "
        f"{w}x{h} pixels centre-cropped and resized to {width}x{height}"
    )
    count = options.number or NUMBER
    real = np.stack([resized] * count)
    beyond = [(0, 0), (0, max(0, t - len(resized))), *[(0, 0)] * 3]
    rows = {"video": np.pad(real, beyond)[:, :t], "label": np.zeros(count, np.int32), "index": np.arange(count)}
    return Shown(rows, [f"{path.stem}_{i:02d}" for i in range(count)], fps / stride, real)


def find_class(label: str, names: Sequence[str], count: int = 0) -> int:
    """The number of a class given by number or name; `count` says how many there are where there are no names.

    ValueError lists the nearest names, or the range."""
    count = len(names) or count
    if label.lstrip("-").isdigit():
        if not 0 <= int(label) < count:
            raise ValueError(
                f"class {label} is out of range: there are {count} classes, from 0"
                if count
                else f"class {label}: this run has no classes"
            )
        return int(label)
    if label in names:
        return list(names).index(label)
    near = difflib.get_close_matches(label, names, 3)
    some = near or list(names)[:5]
    hint = (
        f"did you mean {' or '.join(some)}?"
        if near
        else f"there are {', '.join(some)}{', ...' if len(names) > 5 else ''}"
        if some
        else "give its number"
    )
    raise ValueError(f'there is no class "{label}"; {hint}')
