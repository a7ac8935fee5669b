"""BridgeData V2: a robot arm in toy kitchens, each trajectory with what it was told to do (Walke et al., CoRL 2023,
https://arxiv.org/abs/2308.12952).

    raw/                                                  of demos_8_17.zip, https://rail.eecs.berkeley.edu/datasets/bridge_release/data
        bridge_data_v2/datacol2_toykitchen7/drawer_pnp/01/2023-04-19_09-18-15/raw/traj_group0/traj0/
            lang.txt                                      the instruction in its first line; not in all trajectories
            images0/im_0.jpg, im_1.jpg, ...               the fixed camera over the shoulder; images1, images2 (others) and images3 (at
                                                          the wrist) are not everywhere; obs_dict.pkl, policy_out.pkl, ... are not read
        rss/toykitchen2/set_table/00/2022-01-01_00-00-00/raw/traj_group0/traj0/                          likewise; also icra and flap
        bridge_data_v1/berkeley/toykitchen1/put_banana_on_plate/2021-08-01_10-00-00/raw/traj_group0/traj0/   without a number

Read in github.com/rail-berkeley/bridge_data_v2, data_processing/bridgedata_raw_to_numpy.py at 69f5bcf (the folders, and that frames are
numbered from 0 without gaps), experiments/configs/data_config.py at 26b0349 (the collections and how deep each is), its issues 35 (what
is in demos_8_17.zip) and 39 (scripted_6_18.zip has no lang.txt); github.com/rail-berkeley/bridgedata at 6d77a3b, index.html (the
project's page: cameras, licence); github.com/kvablack/dlimp at ad72ce3, scripts/bridgedata/raw_to_tfrecord.py, and
github.com/kpertsch/bridge_rlds_builder at 51a3750, bridge_dataset/bridge_dataset_dataset_builder.py (lang.txt: its first line, and that
it may be missing). The archive itself was not at hand, and what the zip puts above these folders was not found: trajectories are
therefore looked for at any depth, as folders traj0, traj1, ...

No split is published: those who convert it draw one at random. Seer (github.com/seervideodiffusion/SeerVideoLDM at 614baf9,
dataset/bridgedata.py) trains on the first 0.8 of a list of its own and tells the task's folder in place of lang.txt.
"""

import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from magvid.data.images import decode_image
from magvid.data.source import Cut, Source, instruction, no_folder, report_bad, split_names
from magvid.types import UserError


class Trajectory(NamedTuple):
    """A usable one: its folder relative to the archive's, class, text, number of frames, digest, and where a clip may begin."""

    name: str
    label: int
    text: str
    count: int
    digest: str
    starts: Sequence[int]


class Bridge(Source):
    """Source of uint8 clips (frames height width 3) of the trajectories anywhere below `path`, the folder raw or one within it.

    frames, height, width, stride, crop, windows, keep_aspect: as for `VideoFolder`. split: "train" or "validation" (a share `holdout` of
    the usable trajectories, chosen by a hash of their names), None for all. camera: 0 for images0, the only one that all have. spread:
    a clip's frames lie evenly from the first to the last one of the trajectory; `stride` must then be 1, and `crop` has no effect in
    time.

    A record is {"video": uint8 (t h w 3), "label": int32 in [0, len(classes)), "text": str, "file": str, "digest": str}. label: of the
    task, whose folder's names are `classes` ("drawer_pnp"). text: "put the pot on the stove". file: the trajectory's folder. digest: of
    the names and sizes of its frames. Attributes: `classes`, `files` (usable trajectories of this split), `bad` (name -> reason: also
    those without a text). A trajectory that cannot be read later is replaced by the next one that can. UserError where there is none,
    or none that is usable.
    """

    fps = None  # the archive does not say

    def __init__(
        self,
        path: str | os.PathLike,
        frames: int,
        height: int,
        width: int,
        *,
        split: str | None = None,
        holdout: float = 0.2,
        camera: int = 0,
        stride: int = 1,
        crop: str = "random",
        windows: int = 0,
        keep_aspect: bool = True,
        spread: bool = True,
    ):
        super().__init__(frames, height, width, stride, crop, windows, keep_aspect=keep_aspect, spread=spread)
        self.path, self.camera = pathlib.Path(path).expanduser(), f"images{camera}"
        if not self.path.is_dir():
            raise UserError(no_folder(self.path, "BridgeData V2 (raw/ of demos_8_17.zip)"))
        names = sorted(_trajectories(self.path))
        if not names:
            raise UserError(f"{self.path} has no folder traj0, traj1, ...: unpack demos_8_17.zip of BridgeData V2 there")
        tasks = {name: _task(self.path.resolve() / name) for name in names}
        self.classes = tuple(sorted(set(tasks.values())))
        found = {name: self._opened(name, self.classes.index(tasks[name])) for name in names}
        self.bad = {name: reason for name, reason in found.items() if isinstance(reason, str)}
        remedy = "Unpack the archive again, or lower frames or stride where they are too short."
        report_bad(self.path, self.bad, len(found), "trajectories", remedy)
        usable = {name: self._place(name) for name in names if name not in self.bad}
        chosen = set(split_names(sorted(set(usable.values())), split, holdout))
        self.files = [name for name, place in usable.items() if place in chosen]
        self.records, self._trajectories = len(self.files), [found[name] for name in self.files]

    def _place(self, name: str) -> str:
        """Where the archive has a trajectory, from its task on: the same in whichever of the folders above it it is looked for."""
        return "/".join((self.path.resolve() / name).parts[-6:])

    @property
    def fingerprint(self) -> str:
        """Changes with the names and sizes of the frames, the texts and classes, and the way clips are cut."""
        cut = [self.frames, self.height, self.width, self.stride, self.crop, self.windows, self.keep_aspect, self.spread, self.camera]
        content = [cut, [(t.name, t.label, t.text, t.digest) for t in self._trajectories]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def cut(self, i: int, cut: Cut) -> dict[str, Any]:
        trajectory = self._trajectories[i]
        order = self.spread_out(np.arange(trajectory.count))
        first = trajectory.starts[cut.first(len(trajectory.starts))]
        files = [self.path / trajectory.name / self.camera / f"im_{k}.jpg" for k in order[first : first + self.span : self.stride]]
        images = [self.fit(decode_image(file, (self.height, self.width))[None], cut) for file in files]
        told = {"text": trajectory.text, "file": trajectory.name, "digest": trajectory.digest}
        return {"video": np.concatenate(images), "label": np.int32(trajectory.label), **told}

    def _opened(self, name: str, label: int) -> Trajectory | str:
        """A trajectory, or why it is left out."""
        folder = self.path / name
        try:
            with open(folder / "lang.txt", encoding="utf-8") as stream:
                text = instruction(stream.readline())
        except FileNotFoundError:
            return "has no lang.txt"
        except UnicodeDecodeError:
            return "lang.txt is not UTF-8 text"
        if not text:
            return "lang.txt has no text"
        if not (folder / self.camera).is_dir():
            return f"has no {self.camera}"
        entries = [entry for entry in os.scandir(folder / self.camera) if re.fullmatch(r"im_\d+\.jpg", entry.name)]
        sizes = {entry.name: entry.stat().st_size for entry in entries}
        frames = [f"im_{k}.jpg" for k in range(len(sizes))]
        if missing := [frame for frame in frames if not sizes.get(frame)]:
            return f"{len(missing)} of its frames are missing or empty, such as {missing[0]}"
        digest = hashlib.sha256(json.dumps([(frame, sizes[frame]) for frame in frames]).encode()).hexdigest()
        starts = self.starts(name, digest, self.spread_out(np.arange(len(frames))), self.stride)
        return starts if isinstance(starts, str) else Trajectory(name, label, text, len(frames), digest, starts)


def _trajectories(path: pathlib.Path) -> Iterator[str]:
    """Relative names of the folders traj0, traj1, ... below `path`, through links (each folder once)."""
    seen = set()
    for folder, folders, _ in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen or re.fullmatch(r"traj\d+", os.path.basename(folder)):
            folders.clear()  # of a trajectory's folders, full of frames, none is entered
        if real not in seen and re.fullmatch(r"traj\d+", os.path.basename(folder)):
            yield pathlib.Path(folder).relative_to(path).as_posix()
        seen.add(real)


def _task(trajectory: pathlib.Path) -> str:
    """The folder of its task: above raw/traj_group0 and the dated folder, and above the numbered one that only some have."""
    above = [part for part in trajectory.parts[1:-4] if not part.isdigit()]
    return above[-1] if above else "bridge"
