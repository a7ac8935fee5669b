"""The index of a folder of videos: every file is decoded once, and what that showed is kept in a json file.

Later passes decode only files whose size or time and content (SHA-256) have changed. The file is replaced atomically,
and belongs to this library only if it says so in `format`; a foreign index.json is left alone.
"""

import concurrent.futures
import hashlib
import json
import logging
import os
import pathlib
import time
from collections.abc import Collection

import numpy as np
from jaxtyping import Int

from magvid import video
from magvid.data.source import file_names, no_folder
from magvid.types import UserError

FORMAT = "magvid.video_index/1"
log = logging.getLogger(__name__)


def index_folder(
    path: str | os.PathLike, index: str | os.PathLike | None = None, names: Collection[str] | None = None
) -> dict[str, dict]:
    """Decodes the new and changed video files under `path` -> {relative name: entry}, kept in a json file.

    names: only these files, whether they are there or not; what the json file says of others stays in it.
    An entry holds size, mtime (ns) and sha256, and either `error` (why the file is unusable) or `timeline`: the pts of
    all frames as first + runs of (steps, counts), the tick in seconds as a fraction, the nominal rate, and `seek`:
    whether the file carries these very timestamps, so that it can be searched by them.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_dir():
        raise UserError(no_folder(path, "videos"))
    video.import_av()  # a missing package is no fault of the files
    listed = sorted(file_names(path, video.SUFFIXES) if names is None else names)
    if not listed:
        raise UserError(f"{path} holds no videos: expected files named *{', *'.join(video.SUFFIXES)}")
    file = _index_file(path, index)
    known = _load_index(file)
    if not known and _is_ours(path / "index.json"):
        known = _load_index(path / "index.json")  # made by somebody who may write there
    entries = {name: known[name] for name in listed if name in known and _same(path / name, known[name])}
    todo = [name for name in listed if name not in entries]
    saved = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        probes = pool.map(lambda name: _probe(path / name, known.get(name)), todo)
        for done, (name, entry) in enumerate(zip(todo, probes, strict=True), 1):
            entries[name] = entry
            if time.monotonic() - saved > 10:  # so that an interrupted pass over a large folder goes on where it was
                log.warning("indexing %s: %d of %d files", path, done, len(todo))
                _save_index(file, {**known, **entries})
                saved = time.monotonic()
    kept = entries if names is None else {**known, **entries}
    if kept != known:
        _save_index(file, kept)
        if file.parent != path:
            log.warning("%s: the index is kept in %s", path, file)
    return dict(sorted(entries.items()))


def _same(file: pathlib.Path, entry: dict) -> bool:
    stat = file.stat() if file.exists() else None  # a broken link is listed as well
    return stat is not None and entry["size"] == stat.st_size and entry["mtime"] == stat.st_mtime_ns


def _probe(file: pathlib.Path, known: dict | None) -> dict:
    """Decodes a whole file -> its entry; a file that was only touched or copied keeps what is known."""
    try:
        stat = file.stat()
        entry = {"size": stat.st_size, "mtime": stat.st_mtime_ns}
        with open(file, "rb") as stream:
            entry["sha256"] = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        return {"size": 0, "mtime": 0, "sha256": "", "error": f"cannot be opened: {error.strerror}"}
    if known and known["sha256"] == entry["sha256"]:
        return {**known, **entry}
    if not stat.st_size:
        return {**entry, "error": "empty file"}
    pts, frame, seek = [], None, True
    try:
        for frame in video.decode(file):
            pts.append(frame.pts)
            seek = seek and frame.pts == frame.raw.pts
    except UserError as error:
        after = f" (after {len(pts)} frames)" if pts else ""
        return {**entry, "error": str(error).removeprefix(f"{file} ") + after}
    if frame is None:
        return {**entry, "error": "has no video frames"}
    steps, counts = _runs(np.diff(pts))
    tick, rate = frame.time_base, float(frame.rate)
    timeline = {"first": pts[0], "runs": [steps, counts], "tick": [tick.numerator, tick.denominator], "rate": rate}
    return {**entry, "timeline": {**timeline, "seek": seek}}


def _runs(steps: np.ndarray) -> tuple[list[int], list[int]]:
    """Run-length code: constant frame rates take one run."""
    starts = np.flatnonzero(np.diff(steps, prepend=steps[:1] - 1)) if len(steps) else np.zeros(0, int)
    return steps[starts].tolist(), np.diff(starts, append=len(steps)).tolist()


def timestamps(timeline: dict) -> Int[np.ndarray, "n"]:
    """The pts of all frames of an entry's timeline, in ticks."""
    steps = np.repeat(*(np.asarray(x, np.int64) for x in timeline["runs"]))
    return timeline["first"] + np.concatenate([[0], np.cumsum(steps)])


def _index_file(path: pathlib.Path, index: str | os.PathLike | None) -> pathlib.Path:
    """Where it is kept: as told, else in the folder, else (read-only, or a foreign index.json) in the user's cache."""
    if index is not None:
        return pathlib.Path(index).expanduser()
    file = path / "index.json"
    if os.access(path, os.W_OK) and (not file.exists() or _is_ours(file)):
        return file
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "magvid"
    return cache / f"index-{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}.json"


def _is_ours(file: pathlib.Path) -> bool:
    try:
        return str(json.loads(file.read_text("utf-8")).get("format")).startswith(FORMAT.split("/")[0])
    except (OSError, ValueError, AttributeError):
        return False


def _load_index(file: pathlib.Path) -> dict[str, dict]:
    if not file.exists():
        return {}
    if not _is_ours(file):
        raise UserError(f"{file} is not an index of this library: delete it or give another file as `index`")
    content = json.loads(file.read_text("utf-8"))
    files = content.get("files") if content["format"] == FORMAT else {}  # an older format is indexed afresh
    need = {"size", "mtime", "sha256"}
    whole = lambda entry: isinstance(entry, dict) and need <= set(entry) and ("error" in entry or "timeline" in entry)
    return {name: entry for name, entry in files.items() if whole(entry)} if isinstance(files, dict) else {}


def _save_index(file: pathlib.Path, entries: dict[str, dict]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(entries[name])}" for name in sorted(entries))
    partial.write_text(f'{{"format": "{FORMAT}", "files": {{\n{rows}\n}}}}\n', "utf-8")
    os.replace(partial, file)
