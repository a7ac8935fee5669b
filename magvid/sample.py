"""Videos of a trained run: conditions from a video, a picture, a prompt or evaluation clips -> a file per sample, a
labelled grid.
"""

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from magvid import conditions, runs
from magvid.conditions import NUMBER, Shown, find_class
from magvid.data.entities import Entities
from magvid.generator import Clips, Generator, check, clip_format
from magvid.pictures import labelled_grid, steps_picture
from magvid.runs import ClipFormat
from magvid.types import UserError
from magvid.video import upscale, write_image, write_video

FORMATS = ("mp4", "gif", "webm", "png")
FLAGS = dict(text="a text (--prompt)", image="a picture (--image or --video)")
PICTURE_ALONE = "give a --video, or name a task that is given one frame (--task)"
VIDEO = "a video (--video)"  # where more than a first frame is needed
VISIBLE = 128  # pixels: smaller videos are enlarged to at least this height


@dataclasses.dataclass(frozen=True)
class Options:
    """What to generate, as the flags of `magvid sample` say it. None stands for the run's own."""

    tasks: Sequence[str] | None = None
    video: str | None = None  # a file; without any: evaluation clips
    image: str | None = None  # a file: the first frame
    prompt: str | None = None
    negative: str | None = None  # prompt that guidance leads away from; None: the empty one
    start: float = 0.0  # seconds of the video that are skipped
    fps: float | None = None  # at which the video is read; of a picture or a prompt: at which the result is written
    index: int = 0  # the first evaluation clip
    number: int | None = None  # of evaluation clips, or of samples for the file; None: 4, or what clips there are
    label: str | None = None  # id or name of a class
    size: str | None = None  # "HxW" pixels to which the file is cut and resized, or of what comes of a prompt
    frames: int | None = None  # of the result
    overlap: int | None = None  # frames that the windows of a long video share
    steps: int | None = None
    temperature: float | None = None
    schedule: str | None = None
    guidance: float | None = None
    intermediates: bool = False  # draw the decoding steps
    seed: int = 0
    out: str | None = None  # folder
    format: str | None = None  # None: png of videos of one frame, else mp4
    scale: int = 0  # factor of enlargement; 0: to a visible size

    def __post_init__(self):
        if self.format is not None and self.format not in FORMATS:
            raise ValueError(f'format "{self.format}" is unknown: use {", ".join(FORMATS)}')
        if self.tasks is not None and not self.tasks:
            raise ValueError("no task is named: give names such as FP,FI, or leave it out for all")
        if self.tasks is not None and len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"--task={','.join(self.tasks)} names a task twice; for several samples of it give --number")
        ranges = dict(seed=(0, 2**32 - 1), number=(1, 1000), scale=(0, 64), fps=(0.01, 1000), start=(0, 1e6), frames=(1, 10000))
        conditions.check_ranges(self, **ranges, temperature=(0, 1e6), guidance=(0, 1000))
        conditions.check_size(self.size)
        if self.video is not None and self.image is not None:
            raise ValueError("--video and --image both say what is shown: give one of them")
        if self.negative is not None and self.prompt is None:
            raise ValueError("--negative goes with a --prompt")
        self._check_used(("start",), self.video)
        self._check_used(("fps", "size"), self.prompt if self.file is None else self.file, " or --image, or a --prompt")
        if self.overlap is not None and self.frames is None:
            raise ValueError("--overlap is of the windows of a long video: say its length with --frames")
        if self.intermediates and self.frames is not None:
            raise ValueError("--intermediates shows how one clip is decoded: leave out --frames")
        if self.file is not None and self.index:
            raise ValueError("--index counts evaluation clips, and a file takes the place of them: give one of both")

    def _check_used(self, names: Sequence[str], given: str | None, also: str = "") -> None:
        read = {name: getattr(self, name) for name in names if getattr(self, name) not in (None, 0)}
        if given is None and read:
            flags = " ".join(f"--{name}={value}" for name, value in read.items())
            raise ValueError(f"{flags}: this says how a file is read; give one with --video{also}")

    @property
    def file(self) -> str | None:
        return self.image if self.video is None else self.video

    @property
    def suffix(self) -> str:
        """Of the files' names: the seed, and what else was asked for, so that other settings do not overwrite them."""
        named = ("label", "size", "fps", "frames", "overlap", "steps", "temperature", "schedule", "guidance")
        asked = {"seed": self.seed, **{name: getattr(self, name) for name in named}}
        if self.prompt is not None and self.file is not None:
            asked["prompt"] = conditions.slug(self.prompt)
        if self.negative:
            asked["negative"] = conditions.slug(self.negative)
        text = "".join(f"_{name}{value}" for name, value in asked.items() if value is not None)
        return re.sub(r"[^\w.+-]+", "-", text)

    @property
    def decoding(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("steps", "temperature", "schedule", "guidance")}


def sample_run(
    run: runs.Run, options: Options, *, weights: str | None = None, trust: bool = False
) -> list[pathlib.Path]:
    """Writes <out>/<task>_<clip>_seed<seed>.<format> for each task and clip, and a grid; returns the paths, grid last.
    Settings other than the run's are part of the names (_frames64, _guidance2, ...).

    The grid's columns are condition (padded), generated and real, this not for a picture; where nothing but a class or a
    prompt is given, generated alone, and as many samples as are asked for. A run without tasks gives reconstructions, of a file at any `size` and number
    of `frames`. Longer or shorter videos than the run's clips come from frame prediction, over and over: what of them is
    beyond the real clip has white beside it. `intermediates` adds <task>_<clip>_seed<seed>_decoding.png. A video is read,
    and the size of what comes of a class alone taken, as the run folder's data.json says, so that the data set itself
    may be gone. UserError or ValueError, in one sentence, for a run, video, task, class, size or folder that does not
    fit.
    """
    out = pathlib.Path(options.out).expanduser() if options.out else run.samples
    runs.check_writable(out, "--out")
    check(run)
    if isinstance(run, runs.Recipe) and options.file is None and options.prompt is None:
        raise UserError(f"say what {run.path} shall show: give --prompt, --image or --video")
    if (options.file or options.prompt is not None) and conditions.find_transform(run.config, Entities):
        raise UserError(f"{run.path} is told of an entity in pictures: `magvid compose` and `magvid edit` show them to it")
    tokenizer = conditions.find_tokenizer(run.config)
    if options.prompt is not None and tokenizer is None:
        raise UserError(f"--prompt: {run.path} is told no text; leave it out")
    text = conditions.find_text(run.config) if options.prompt is None else options.prompt
    told = {} if tokenizer is None else conditions.words(tokenizer, text or "", options.negative or "")
    clip = None
    if options.file is not None or options.prompt is not None:
        clip = conditions.sized(clip_format(run), options.size)
    elif options.label is not None:
        clip = run.clip
    model = Generator.open(
        run,
        options.tasks,
        decoding=options.decoding,
        batch=options.number or NUMBER,
        weights=weights,
        like=None if clip is None else conditions.blank(clip) | told,
        trust=trust,
    )
    _check_fit(model, options)
    image = model.tasks and (options.frames or model.frames) == 1
    options = dataclasses.replace(options, format=options.format or ("png" if image else "mp4"))
    _say_what_was_not_learned(model, options)
    if not model.tasks:
        shown, _ = _show(model, options, clip, alone=False)
        made = {"reconstruction": {"reconstruction": model.reconstruct(shown.rows), "real": _real(shown)}}
        return _write(out, made, shown, options)
    tasks, objective = _chosen(model, options, run, text is not None), model.programs.objective
    asked = options.file is None and (options.label is not None or options.prompt is not None)
    alone = asked and all(objective.blind[i] for i in tasks)
    if alone and options.frames is not None and clip is not None:  # there are no windows: the model makes one longer clip
        clip = dataclasses.replace(clip, frames=options.frames)
    shown, classes = _show(model, options, clip, alone)
    if options.prompt is not None or options.file is not None:
        shown = shown.told(told)
    if options.label is not None:
        label = find_class(options.label, classes, objective.classes)
        shown.rows["label"] = np.full_like(shown.rows["label"], label)
    pictures = _write_steps(out, model, tasks, shown, options) if options.intermediates else []
    made = {task: _generate(model, i, shown, options, alone) for i, task in tasks.items()}
    return [*pictures, *_write(out, made, shown, options)]


def _show(model: Generator, options: Options, clip: ClipFormat | None, alone: bool) -> tuple[Shown, Sequence[str]]:
    """What is shown, and the names of the classes; `alone`: no picture is."""
    if options.file is None and not alone:
        clips = Clips.of(model.config)
        return conditions.evaluation_clips(clips, options.index, options.number), clips.classes
    clip = clip or Clips.of(model.config).format
    if alone:
        name = "" if options.prompt is None else conditions.slug(options.prompt)
        return conditions.nothing(clip, options.index, options.number, name, options.fps), clip.classes
    if not model.tasks:  # a tokenizer reads what there is
        clip = dataclasses.replace(clip, frames=1 if options.image is not None else options.frames or clip.frames)
    least = model.programs.objective.given_frames(clip.frames) if model.tasks else clip.frames
    if options.image is not None:
        return conditions.of_picture(clip, options.image, options.number, options.fps, least, PICTURE_ALONE), clip.classes
    frames = options.frames or clip.frames
    shown = conditions.of_video(clip, options.video, options.number, options.fps, options.start, least, frames)
    return shown, clip.classes


def _real(shown: Shown) -> UInt8[np.ndarray, "n t h w 3"]:
    return shown.rows["video"] if shown.real is None else shown.real


def _check_fit(model: Generator, options: Options) -> None:
    """UserError for a flag that would do nothing."""
    objective, what = model.programs.objective, ", ".join(model.tasks) or "this run"
    if options.negative and not getattr(getattr(objective, "sampling", None), "guidance", ()):
        raise UserError("--negative: this run is sampled without guidance, which alone leads away from it: give --guidance=G as well")
    if options.label is not None and not any(getattr(objective, "labelled", ())):
        raise UserError(f"--label={options.label}: {what} is not given a class; leave it out")
    if options.file is not None and model.tasks and all(objective.blind):
        raise UserError(f"{what} is given no picture: leave out --{'video' if options.image is None else 'image'}")
    if options.format == "png" and model.tasks and (options.frames or model.frames) > 1:
        raise UserError("--format=png is of images, and these videos have more frames than one: use mp4, gif or webm")
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


def _chosen(model: Generator, options: Options, run: runs.Run, worded: bool) -> dict[int, str]:
    """The tasks that can be done, by number; says which of the run's are left out, or raises where they were named.

    Of tasks that are told a text or a picture, those that use all that was given. `worded`: there is a text, given or the run's own.
    """
    objective, chosen = model.programs.objective, {}
    own = options.file is not None or options.prompt is not None  # and not evaluation clips
    told = {what: objective.told(what) for what in ("text", "image")} if own and hasattr(objective, "told") else {}
    given = dict(text=options.prompt is not None, image=options.file is not None)
    fills = getattr(objective, "fills_gaps", False)  # a transition may be made without a text, as `magvid connect` does
    has, named = given | dict(text=worded or fills), FLAGS | (dict(image=VIDEO) if fills else {})
    for i, task in enumerate(model.tasks):
        lacks = [f"needs {named[what]}" for what, of in told.items() if of[i] and not has[what]]
        unused = [f"makes no use of {named[what]}" for what, of in told.items() if given[what] and not of[i]]
        if own and options.label is None and objective.labelled[i]:
            lacks.append("needs a class: give --label, by number or by name")
        if options.frames is not None and not objective.predicts[i] and not (told and objective.blind[i]):
            lacks.append("makes clips of one length: --frames is for tasks that go on from a last frame, such as FP, CFP and I2V")
        if (options.frames or 1) > model.frames == 1:
            lacks.append("makes pictures: leave out --frames")
        lacks = lacks or (unused if options.tasks is None or len(unused) == sum(given.values()) else [])
        if not lacks:
            chosen[i] = task
        elif options.tasks is not None:
            raise UserError(f"task {task} {lacks[0]}")
        else:
            print(f"{task} is left out: it {lacks[0]}")
    if not chosen:
        raise UserError(f"none of the tasks of {run.path} is left: {', '.join(model.tasks)}")
    return chosen


def _generate(
    model: Generator, task: int, shown: "Shown", options: Options, alone: bool
) -> dict[str, UInt8[np.ndarray, "n t h w 3"]]:
    """{column: videos of one length} of a task."""
    rows = shown.of(task)
    if options.frames is None or alone:
        generated = model.generate(rows, options.seed)
    else:
        generated = model.extend(rows, options.frames, options.overlap, options.seed)
    if alone:
        return {"generated": generated}
    condition, frames = model.condition(rows)[0], generated.shape[1]
    beyond = [(0, 0), (0, max(0, frames - condition.shape[1])), *[(0, 0)] * 3]
    condition = np.pad(condition, beyond, mode="edge")[:, :frames]  # as its own frames are padded
    if shown.real is None:
        return {"condition": condition, "generated": generated}
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
            labels.append(f"{task}  {name}")
    columns = list(next(iter(made.values())))
    short = next(iter(made)) if len(made) == 1 else f"{len(made)}tasks"
    paths.append(out / f"grid_{_stem(short, shown.names[0], options)}.{options.format}")
    write_video(paths[-1], labelled_grid(rows, columns, labels), shown.fps)
    return paths
