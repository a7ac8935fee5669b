"""What happens next: a picture or the beginning of a video, and an instruction -> a video (AID)."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from magvid import conditions, runs
from magvid.data.states import StateFile, state_key
from magvid.generator import Generator, clip_format
from magvid.runs import ClipFormat
from magvid.types import UserError
from magvid.video import upscale, write_video


MORE = "give the beginning of a video in its place"


@dataclasses.dataclass(frozen=True)
class Options:
    """What is predicted and how, as the flags of `magvid predict` say it. None stands for the run's own."""

    file: Sequence[str]  # one: a picture, or a video whose beginning is given
    instruction: str
    out: str
    states: str | None = None  # "a|b|c|d", or a file of tools/predict_states.py
    negative: str | None = None
    frames: int | None = None  # of the result; more than a clip's are predicted window by window
    number: int = 1  # of videos; their files are numbered where there are several
    adapters: str | None = None  # FILE[:WEIGHT][,FILE[:WEIGHT]] in place of what the run trained
    start: float = 0.0  # seconds of a video that are skipped
    fps: float | None = None
    size: str | None = None  # "HxW"
    steps: int | None = None
    guidance: float | None = None  # by the text
    image_guidance: float | None = None
    seed: int = 0
    scale: int = 1

    def __post_init__(self):
        if len(self.file) != 1:
            raise ValueError(f"one picture or video is given to go on from, and {len(self.file)} are named")
        if not (self.instruction or "").strip():
            raise ValueError('--instruction is missing: say what shall happen, such as --instruction="open the drawer"')
        ranges = dict(seed=(0, 2**32 - 1), number=(1, 1000), frames=(2, 10000), start=(0, 1e6), fps=(0.01, 1000), steps=(1, 1000))
        conditions.check_ranges(self, **ranges, guidance=(0, 1000), image_guidance=(0, 1000), scale=(1, 64))
        conditions.check_size(self.size)
        conditions.check_out(self.out, *self.file)
        if self.is_picture and self.start:
            raise ValueError(f"--start={self.start:g} skips the beginning of a video, and {self.file[0]} is a picture: leave it out")

    @property
    def is_picture(self) -> bool:
        return pathlib.Path(self.file[0]).suffix.lower() in conditions.PICTURES

    @property
    def files(self) -> list[pathlib.Path]:
        """Where the videos are written."""
        return conditions.numbered(self.out, self.number)


def predict(run: runs.Run, options: Options, *, weights: str | None = None, trust: bool = False) -> list[pathlib.Path]:
    """Writes the videos and returns where. UserError or ValueError, before anything is generated, for a run that is told no text or not
    shown how a video begins, a file that cannot be read or is too short, states that are missing, too many or empty, adapters of another network.
    """
    runs.check_writable(pathlib.Path(options.out).expanduser().parent, "--out")
    conditions.existing(options.file[0], "picture or video")  # before a model is loaded
    if not run.config["objective"].get("conditioners"):
        raise UserError(refusal(run))
    told = texts(run, options)
    clip = conditions.sized(clip_format(run), options.size)
    _enough(options, clip, max([1, *(spec.get("given", 1) for spec in run.config["objective"]["conditioners"])]))
    model = Generator.open(
        run,
        decoding=conditions.decoding(options),
        batch=min(options.number, conditions.NUMBER),
        weights=weights,
        like=conditions.blank(clip) | told,
        adapters=options.adapters,
        trust=trust,
    )
    task, given = _task(model, run, clip)
    shown = _shown(clip, options, given).told(told)
    rows = shown.of(task)
    made = model.generate(rows, options.seed) if options.frames is None else model.extend(rows, options.frames, None, options.seed)
    for path, video in zip(options.files, made, strict=True):
        write_video(path, upscale(video, options.scale), shown.fps)
    return options.files


def _enough(options: Options, clip: ClipFormat, given: int) -> None:
    """UserError where the file is no beginning of `given` frames, as far apart as the run's."""
    if given > 1 and options.is_picture:
        raise UserError(f"{options.file[0]} is one frame, this run needs {given}: {MORE}")
    if given > 1 and clip.spread and options.fps is None:
        raise UserError(
            f"this run is given {given} frames and was trained on {clip.frames} that lie evenly over a whole video, however long: say with --fps how many "
            f"of {options.file[0]} are taken in a second; {clip.frames} over four seconds are --fps={clip.frames / 4:g}"
        )


def _task(model: Generator, run: runs.Run, clip: ClipFormat) -> tuple[int, int]:
    """The task that is told a text and shown the first frames, and how many these are."""
    objective = model.programs.objective
    if hasattr(objective, "told"):
        for i, (text, image, goes_on) in enumerate(zip(objective.told("text"), objective.told("image"), objective.predicts, strict=True)):
            if text and image and goes_on:
                return i, objective.given_frames(clip.frames)
    raise UserError(refusal(run))


def refusal(run: runs.Run) -> str:
    """What is said of a run that makes other things."""
    return f"{run.path} does not go on from a first frame as a text says: give a run of configs/aid_*.py, or use `magvid sample`"


def _shown(clip: ClipFormat, options: Options, given: int) -> conditions.Shown:
    if options.is_picture:
        return conditions.of_picture(clip, options.file[0], options.number, options.fps, given, MORE)
    fps = options.fps or (conditions.FPS if clip.spread else None)  # of one given frame the rate is that of what is written alone
    return conditions.of_video(clip, options.file[0], options.number, fps, options.start, given, clip.frames)


# Words --------------------------------------------------------------------------------------------------------------


def texts(run: runs.Run, options: Options) -> Mapping[str, np.ndarray]:
    """One row of what the model is told: the instruction, and the predicted states where it reads any."""
    tokenizer = conditions.find_tokenizer(run.config)
    if tokenizer is None:
        raise UserError(f"--instruction: {run.path} is told no text; `magvid sample --image` goes on from a picture alone")
    row = conditions.words(tokenizer, options.instruction, options.negative or "", "--instruction")
    wanted = states_read(run.config)
    if not wanted:
        if options.states is not None:
            raise UserError(f"--states: {run.path} was trained on the instruction alone; leave them out")
        return row
    try:
        return row | {"state_ids": np.stack([tokenizer.encode(state) for state in states(options, wanted)])[None]}
    except ValueError as error:
        raise ValueError(f"--states: {error}") from None


def states_read(config: Mapping) -> int:
    """How many predicted states the model of `config` is told; 0 where it is told none."""
    for conditioner in config["objective"].get("conditioners", ()):
        if "dqformer" in conditioner and not conditioner.get("repeat"):
            return conditioner["dqformer"]["states"]
    return 0


def states(options: Options, wanted: int) -> list[str]:
    """UserError where there are none, too few or too many, or one is empty."""
    given, how = options.states, f'give --states="first|...|last", {wanted} of them, or a file of tools/predict_states.py'
    if given is None:
        raise UserError(f"this run is told {wanted} predicted states of the scene beside the instruction: {how}")
    if not given.endswith(".json") and pathlib.Path(given).is_file():
        raise UserError(f"--states={given} is a file that is not named *.json; {how}")
    found = _stored(options) if given.endswith(".json") else [part.strip() for part in given.split("|")]
    if len(found) != wanted or not all(found):
        raise UserError(f"--states={given}: there are {len(found)} states{'' if all(found) else ', and one is empty'}; {how}")
    return found


def _stored(options: Options) -> list[str]:
    """Those of the picture or video and the instruction, in a file of predicted states."""
    path = conditions.existing(options.file[0], "picture or video")
    key = state_key(hashlib.sha256(path.read_bytes()).hexdigest(), options.instruction)
    entries = StateFile.load(options.states).states
    if key not in entries:
        raise UserError(
            f"{options.states} has no states of {options.file[0]} with this instruction: run tools/predict_states.py --image={options.file[0]} "
            f'--instruction="{options.instruction}" --model=... --out={options.states}'
        )
    return list(entries[key].states)
