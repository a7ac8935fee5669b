"""Videos of a trained run: conditions from a video file or evaluation clips -> a file per sample, a labelled grid."""

import dataclasses
import difflib
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8

from magvid import runs
from magvid.generator import Clips, Generator
from magvid.runs import ClipFormat
from magvid.types import UserError
from magvid.video import grid, read_video, resize_crop, upscale, write_video

FORMATS = ("mp4", "gif", "webm", "png")
VISIBLE = 128  # pixels: smaller videos are enlarged to at least this height
GRID_CELL = 96
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
    steps: int | None = None
    temperature: float | None = None
    seed: int = 0
    out: str | None = None  # folder
    format: str = "mp4"  # png: of videos of one frame
    scale: int = 0  # factor of enlargement; 0: to a visible size

    def __post_init__(self):
        if self.format not in FORMATS:
            raise ValueError(f'format "{self.format}" is unknown: use {", ".join(FORMATS)}')
        if self.tasks is not None and not self.tasks:
            raise ValueError("no task is named: give names such as FP,FI, or leave it out for all")
        ranges = dict(
            seed=(0, 2**32 - 1), number=(1, 1000), scale=(0, 64), fps=(0.01, 1000), start=(0, 1e6), temperature=(0, 1e6)
        )
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:  # NaN fails as well
                raise ValueError(f"{name} must lie between {low:g} and {high:g}, got {value:g}")
        if self.video is None and (self.start or self.fps is not None):
            raise ValueError("--start and --fps say how a file is read: give one with --video")
        if self.video is not None and self.index:
            raise ValueError("--index counts evaluation clips, and --video takes the place of them: give one of both")


def sample_run(
    run: runs.Run, options: Options, *, weights: str | None = None, trust: bool = False
) -> list[pathlib.Path]:
    """Writes <out>/<task>_<clip>_seed<seed>.<format> for each task and clip, and a grid; returns the paths, grid last.

    The grid's columns are condition (padded), generated and real; where nothing but a class is given, generated alone,
    and as many samples as are asked for. A run without tasks gives reconstructions. A video is
    read, and the size of what comes of a class alone taken, as the run folder's data.json says, so that the data set
    itself may be gone. UserError or ValueError, in one sentence, for a run, video, task, class or folder that does not
    fit.
    """
    out = pathlib.Path(options.out).expanduser() if options.out else run.path / "samples"
    runs.check_writable(out, "--out")
    decoding = dict(steps=options.steps, temperature=options.temperature)
    clip = None if options.video is None and options.label is None else run.clip
    model = Generator.open(
        run, options.tasks, decoding=decoding, batch=options.number or NUMBER, weights=weights, clip=clip, trust=trust
    )
    objective = model.programs.objective
    if options.label is not None and not any(getattr(objective, "labelled", ())):
        what = ", ".join(model.tasks) or "this run"
        raise UserError(f"--label={options.label}: {what} is not given a class; leave it out")
    from_class = options.label is not None and all(objective.blind)
    if options.video is None and not from_class:
        clips = Clips.of(model.config)
        classes, (rows, names, fps) = clips.classes, _from_clips(clips, options)
    else:
        clip = clip or Clips.of(model.config).format
        classes, (rows, names, fps) = clip.classes, (_from_class if from_class else _from_video)(clip, options)
    if options.label is not None:
        rows["label"] = np.full_like(rows["label"], find_class(options.label, classes, objective.classes))
    made = {}  # task -> {column: videos (n t h w 3)}
    if not model.tasks:
        made["reconstruction"] = {"reconstruction": model.reconstruct(rows), "real": rows["video"]}
    for i, task in enumerate(model.tasks):
        if options.video is not None and options.label is None and objective.labelled[i]:
            if options.tasks is not None:
                raise UserError(f"task {task} needs a class: give --label, by number or by name")
            print(f"{task} is left out: it needs a class (--label)")
            continue
        task_rows = {**rows, "task": np.full(len(names), i, np.int32)}
        generated = model.generate(task_rows, options.seed)
        made[task] = {"condition": model.condition(task_rows)[0], "generated": generated, "real": rows["video"]}
        made[task] = {"generated": generated} if from_class else made[task]
    if not made:
        raise UserError(f"every task of {run.path} needs a class: give --label, by number or by name")
    return _write(out, made, names, options, fps)


def _write(
    out: pathlib.Path, made: Mapping[str, Mapping[str, np.ndarray]], names: Sequence[str], options: Options, fps: float
) -> list[pathlib.Path]:
    paths, rows, labels = [], [], []
    for task, videos in made.items():
        generated = videos.get("generated", videos.get("reconstruction"))
        for i, name in enumerate(names):
            paths.append(out / f"{task.replace(':', '-')}_{name}_seed{options.seed}.{options.format}")
            write_video(paths[-1], upscale(generated[i], options.scale or -(-VISIBLE // generated.shape[2])), fps)
            rows.append([v[i] for v in videos.values()])
            labels.append(f"{task} {name}")
    columns = list(next(iter(made.values())))
    short = next(iter(made)) if len(made) == 1 else f"{len(made)}tasks"
    paths.append(out / f"grid_{short.replace(':', '-')}_{names[0]}_seed{options.seed}.{options.format}")
    write_video(paths[-1], labelled_grid(rows, columns, labels), fps)
    return paths


# Conditions ---------------------------------------------------------------------------------------------------------


def _from_class(clip: ClipFormat, options: Options) -> tuple[dict[str, np.ndarray], list[str], float]:
    """(rows, their names, frames per second) where no picture is given."""
    index = np.arange(options.index, options.index + (options.number or NUMBER))
    video = np.zeros((len(index), clip.frames, clip.height, clip.width, 3), np.uint8)
    return {"video": video, "label": np.zeros(len(index), np.int32), "index": index}, [f"{i:05d}" for i in index], 8.0


def _from_clips(clips: Clips, options: Options) -> tuple[dict[str, np.ndarray], list[str], float]:
    """The same of evaluation clips."""
    count = options.number or max(1, min(NUMBER, len(clips.source) - options.index))
    rows = next(clips.batches(options.index, count, count))
    return rows, [f"{i:05d}" for i in rows["index"]], 8.0


def _from_video(clip: ClipFormat, options: Options) -> tuple[dict[str, np.ndarray], list[str], float]:
    """The beginning of a file, cut to the size of the run's clips, `number` times. Says what was done to it."""
    t, height, width, stride = clip.frames, clip.height, clip.width, clip.stride
    need = (t - 1) * stride + 1
    path = pathlib.Path(options.video).expanduser()
    if not path.is_file():
        raise UserError(f"there is no video {options.video}")
    video, fps = read_video(path, options.fps or clip.fps, need, options.start)
    if len(video) < need:
        raise UserError(
            f"{options.video} is too short: {len(video)} frames from {options.start:g} s on, this run needs {need}; "
            "take a longer one or another --fps"
        )
    resized = resize_crop(video[::stride], height, width)
    h, w = video.shape[1:3]
    print(
        f"{path.name}: {t} frames at {fps / stride:g} per second, "
        f"{w}x{h} pixels centre-cropped and resized to {width}x{height}"
    )
    count = options.number or NUMBER
    rows = {"video": np.stack([resized] * count), "label": np.zeros(count, np.int32), "index": np.arange(count)}
    return rows, [f"{path.stem}_{i:02d}" for i in range(count)], fps / stride


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


# Grid ---------------------------------------------------------------------------------------------------------------


def labelled_grid(
    rows: Sequence[Sequence[UInt8[np.ndarray, "t h w 3"]]], columns: Sequence[str], labels: Sequence[str]
) -> UInt8[np.ndarray, "t H W 3"]:
    """Videos in rows and columns on white, with names of the columns above and of the rows at the left."""
    flat = np.stack([video for row in rows for video in row])
    h = flat.shape[2]
    scale = max(1, -(-GRID_CELL // h))
    body = grid(flat, columns=len(columns), gap=4, scale=scale)
    cell_h, cell_w = h * scale + 4, flat.shape[3] * scale + 4
    left = max(_text(label).shape[1] for label in labels) + 8
    canvas = np.full((len(body), body.shape[1] + 20, body.shape[2] + left, 3), 255, np.uint8)
    canvas[:, 20:, left:] = body
    for i, name in enumerate(columns):
        _paste(canvas, _text(name), 4, left + i * cell_w)
    for i, name in enumerate(labels):
        _paste(canvas, _text(name), 20 + i * cell_h + cell_h // 2 - 8, 4)
    return canvas


def _text(text: str) -> UInt8[np.ndarray, "h w 3"]:
    try:
        from PIL import Image, ImageDraw
    except ImportError as error:
        raise UserError("the grid's labels need Pillow, which is not installed: pip install pillow") from error
    width = int(ImageDraw.Draw(Image.new("RGB", (1, 1))).textlength(text)) + 1
    image = Image.new("RGB", (width, 14), "white")
    ImageDraw.Draw(image).text((0, 0), text, fill="black")
    return np.asarray(image)


def _paste(canvas: np.ndarray, image: np.ndarray, y: int, x: int) -> None:
    h, w = image.shape[0], min(image.shape[1], canvas.shape[2] - x)
    canvas[:, y : y + h, x : x + w] = image[:, :w]
