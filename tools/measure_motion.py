"""How much moves in videos: SSIM, and optical flow, of every pair of adjacent frames. Done once; sources then leave out the
windows with a scene cut or without motion (`magvid.data.motion`).

    python tools/measure_motion.py --data=videos --out=videos/motion.json
    python tools/measure_motion.py --data=Animal_Kingdom/action_recognition --animal=Horse --flow --out=horses.json
    python tools/measure_motion.py --data=behaviorDiscovery2.0 --animal=tiger --raft=raft_large.pth --out=tigers.json

`--data` is a folder of videos, Animal Kingdom's action_recognition or TigDog's behaviorDiscovery2.0. As in the released code
of MAVIN (mavin/data/dataset.py), frames are resized to `--size` whatever their shape, SSIM is the mean of the three colours', and
flow the mean length of the vectors, in pixels of that size. That code computes it by torchvision's RAFT-large, whose weights
`--raft` takes (WEIGHTS below). `--flow` alone needs none: OpenCV's DIS (Kroeger et al., 2016), whose numbers are others.

An interrupted run goes on where it was; videos that have changed are measured again.
"""

import pathlib
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np
from jaxtyping import Float, UInt8

from magvid.data.animal_kingdom import AnimalKingdom
from magvid.data.folder import VideoFolder
from magvid.data.motion import Measured, load, save
from magvid.data.tigdog import TigDog
from magvid.flags import Flag, Program, guarded, leave, parse, program_help
from magvid.metrics.frames import ssim
from magvid.types import UserError
from magvid.video import stretch

WEIGHTS = "https://download.pytorch.org/models/raft_large_C_T_SKHT_V2-ff5fadd5.pth"
PAIRS = 16  # that are computed at a time
Flow = Callable[[UInt8[np.ndarray, "t h w 3"]], Float[np.ndarray, "t-1"]]

PROGRAM = Program(
    "python tools/measure_motion.py",
    "Measure SSIM and optical flow between the frames of videos, for sources that leave out scene cuts and still windows.",
    [
        Flag("data", "str", None, "FOLDER", "of videos, or of Animal Kingdom (action_recognition) or TigDog (behaviorDiscovery2.0)"),
        Flag("animal", "str", None, "NAME[,NAME]", "of these two: whose videos"),
        Flag("out", "str", None, "FILE", "the .json file to write, or to go on with"),
        Flag("size", "str", "256x256", "HxW", "that frames are resized to"),
        Flag("flow", "bool", False, "", "optical flow as well, by OpenCV's DIS"),
        Flag("raft", "str", None, "FILE", f"optical flow by torchvision's RAFT-large, with its weights ({WEIGHTS})"),
    ],
    ["--data=videos --out=motion.json", "--data=action_recognition --animal=Horse --flow --out=horses.json"],
)


def main(argv: list[str]) -> None:
    if {"--help", "-h"} & set(argv):
        print(program_help(PROGRAM))
        return
    values = parse(PROGRAM, argv, need="data out")
    if not (size := re.fullmatch(r"(\d+)x(\d+)", values.size)):
        raise UserError(f'--size must be like 256x256 (height x width), got "{values.size}"')
    size = int(size[1]), int(size[2])
    flow = raft_flow(values.raft, size) if values.raft else dis_flow() if values.flow else None
    how = "raft" if values.raft else "dis" if values.flow else None
    measure(open_source(values.data, values.animal, size), values.out, size, how, flow)


def open_source(data: str, animal: str | None, size: tuple[int, int]) -> Any:
    """All videos of at least two frames."""
    folder, shape = pathlib.Path(data).expanduser(), (2, *size)
    kingdom, tigdog = (folder / "AR_metadata.xlsx").is_file(), (folder / "ranges").is_dir()
    if (kingdom or tigdog) != bool(animal):
        what = "is neither Animal Kingdom (AR_metadata.xlsx) nor TigDog (ranges/)" if animal else "has several animals"
        raise UserError(f"{data} {what}: " + ("leave out --animal" if animal else "choose by --animal"))
    if kingdom:
        return AnimalKingdom(folder, *shape, animal=animal.split(","))
    return TigDog(folder, *shape, animal=animal) if tigdog else VideoFolder(folder, *shape)


def measure(source: Any, out: str, size: tuple[int, int], how: str | None = None, flow: Flow | None = None) -> None:
    """Writes the measurements of all files of a source (`files`, `whole`) to `out`, and goes on with those that are there.
    UserError where these were made with other settings.
    """
    settings, found = {"size": list(size), "flow": how}, {}
    if pathlib.Path(out).expanduser().exists():
        before, found = load(out)
        if before != settings:
            raise UserError(f"{out} was measured with {before}, now it is {settings}: give another --out, or delete it")
    saved, failed = time.monotonic(), 0
    for i in range(len(source.files)):
        name, digest, frames = source.whole(i)
        if name not in found or found[name].digest != digest:
            try:
                found[name] = Measured(digest, *pairs_of(frames, size, flow))
            except (UserError, OSError) as error:
                print(f"left out: {error}", file=sys.stderr)
                failed += 1
        if time.monotonic() - saved > 10:
            print(f"{i + 1} of {len(source.files)} videos", flush=True)
            save(out, settings, found)
            saved = time.monotonic()
    save(out, settings, found)
    cuts = sum(bool((entry.ssim < 0.1).any()) for entry in found.values())
    print(f"{out}: {len(found)} videos, {cuts} with a scene cut (an SSIM below 0.1)" + (f", {failed} left out" if failed else ""))


def pairs_of(
    frames: Iterator[UInt8[np.ndarray, "h w 3"]], size: tuple[int, int], flow: Flow | None
) -> tuple[Float[np.ndarray, "pairs"], Float[np.ndarray, "pairs"] | None]:
    """SSIM and flow of all adjacent frames of one video, a few of which are in memory at a time."""
    similar, moved = [], []
    for chunk in chunks(frames, size):
        similar.append(colour_ssim(chunk))
        if flow:
            moved.append(flow(chunk))
    return np.concatenate(similar), np.concatenate(moved) if flow else None


def chunks(frames: Iterator[UInt8[np.ndarray, "h w 3"]], size: tuple[int, int]) -> Iterator[UInt8[np.ndarray, "t h w 3"]]:
    """The resized frames, PAIRS + 1 at a time; each chunk begins with the last frame of the one before."""
    held: list[np.ndarray] = []
    for frame in frames:
        held.append(stretch(frame[None], *size)[0])
        if len(held) == PAIRS + 1:
            yield np.stack(held)
            held = held[-1:]
    if len(held) > 1:
        yield np.stack(held)


def colour_ssim(frames: UInt8[np.ndarray, "t h w 3"]) -> Float[np.ndarray, "t-1"]:
    """Mean over red, green and blue of the SSIM of adjacent frames."""
    pairs = len(frames) - 1
    frames = np.pad(frames, [(0, PAIRS - pairs), (0, 0), (0, 0), (0, 0)], mode="edge")  # one program for all videos
    # each colour as a grey picture of its own
    grey = np.repeat(np.moveaxis(frames, -1, 1)[..., None], 3, axis=-1)
    return np.asarray(ssim(grey[:-1], grey[1:])).mean(axis=1)[:pairs]


def dis_flow() -> Flow:
    """OpenCV's dense inverse search, preset medium, on grey frames."""
    try:
        import cv2
    except ImportError as error:
        raise UserError(f'--flow needs OpenCV, which cannot be imported ({error}): pip install -e ".[flow]"') from error
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def flow(frames: UInt8[np.ndarray, "t h w 3"]) -> Float[np.ndarray, "t-1"]:
        grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
        return _lengths([search.calc(a, b, None) for a, b in zip(grey, grey[1:], strict=False)])

    return flow


def raft_flow(weights: str, size: tuple[int, int]) -> Flow:
    """torchvision's RAFT-large, on a GPU where torch has one."""
    if min(size) < 128 or any(n % 8 for n in size):
        raise UserError(f"--raft needs a --size of multiples of 8, at least 128, got {size[0]}x{size[1]}")
    if not pathlib.Path(weights).expanduser().is_file():
        raise UserError(f"there is no file {weights}: those of RAFT-large are {WEIGHTS}")
    try:
        import torch
        from torchvision.models.optical_flow import raft_large
    except (ImportError, RuntimeError) as error:  # the latter where the two do not fit each other
        raise UserError(f"--raft needs torch and torchvision, which cannot be imported ({error})") from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = raft_large().eval().to(device)
    try:
        model.load_state_dict(torch.load(pathlib.Path(weights).expanduser(), map_location=device, weights_only=True))
    except Exception as error:  # torch raises whatever comes up
        first = str(error).splitlines()[0]
        raise UserError(f"{weights} does not hold the weights of torchvision's raft_large ({first})") from error

    @torch.no_grad()
    def flow(frames: UInt8[np.ndarray, "t h w 3"]) -> Float[np.ndarray, "t-1"]:
        images = torch.from_numpy(np.moveaxis(frames, -1, 1).copy()).to(device) / 127.5 - 1
        found = [model(a[None], b[None])[-1][0] for a, b in zip(images, images[1:], strict=False)]
        return _lengths([np.moveaxis(field.cpu().numpy(), 0, -1) for field in found])

    return flow


def _lengths(fields: Sequence[Float[np.ndarray, "h w 2"]]) -> Float[np.ndarray, "t"]:
    """The mean length of each field's vectors, in pixels."""
    return np.array([np.linalg.norm(field, axis=-1).mean() for field in fields], np.float32)


if __name__ == "__main__":
    leave(guarded("measure_motion", sys.argv[1:], main))
