"""Peak memory of `magvid connect` by the length of the video that it makes.

    python benchmarks/connect_memory.py --run=runs/mavin_sprites-quick/full-0 --out=benchmarks/results/connect_memory.json [--lengths=48,128,512,2048]

Three clips of noise of 480x640 pixels are joined at `--size` (default: 128x128), each length in a process of its own, whose peak
resident memory is read when it ends. Memory depends on the size of the frames and of the network; here it shall not depend on the length.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks.magvit_speed import machine  # noqa: E402
from magvid.video import read_video, write_video  # noqa: E402


def noise(frames: int, seed: int):
    """Blocks of noise, frame by frame."""
    rng = np.random.default_rng(seed)
    for _ in range(frames):
        yield np.repeat(np.repeat(rng.integers(0, 256, (30, 40, 3)).astype(np.uint8), 16, 0), 16, 1)


def measure(run: str, length: int, size: str, folder: pathlib.Path) -> dict:
    """{"frames", "peak_mb", "seconds"} of joining three clips of length / 3 frames."""
    clips = [folder / f"{i}.mp4" for i in range(3)]
    for i, path in enumerate(clips):
        write_video(path, noise(length // 3 + (length % 3 > i), i), 8)
    command = [sys.executable, "-m", "magvid", "connect", *map(str, clips), f"--run={run}", f"--size={size}", "--refine=3,3", "--fps=8"]
    begin = time.monotonic()
    process = subprocess.Popen([*command, "--prompt=a red disc moves up on a grey background", f"--out={folder / 'out.mp4'}"], cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    frames = len(read_video(folder / "out.mp4")[0])
    return dict(frames=frames, peak_mb=round(usage.ru_maxrss / 1024), seconds=round(time.monotonic() - begin, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--lengths", default="48,128,512,2048")
    parser.add_argument("--size", default="128x128")
    options = parser.parse_args()
    rows = []
    for length in map(int, options.lengths.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(str(pathlib.Path(options.run).absolute()), length, options.size, pathlib.Path(folder)))
        print(rows[-1], flush=True)
    options.out.write_text(json.dumps({**machine(), "size": options.size, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
