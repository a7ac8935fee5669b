"""Masks of the subject of videos or pictures, by a segmentation model. Done once; sources of clips then read them (`masks` of
`magvid.data.folder.VideoFolder`).

    python tools/segment.py --data=videos --model=CIDAS/clipseg-rd64-refined --subject="dog" --out=videos/masks
    python tools/segment.py --data=videos --model=facebook/mask2former-swin-large-coco-panoptic --out=videos/masks
    python tools/segment.py --image=dog.jpg --model=models/mask2former --out=dog.png
    python tools/segment.py --image=clip.mp4 --model=models/mask2former --out=masks/clip

MagDiff (Zhao et al., ECCV 2024, arXiv 2311.17338) is told of an entity by its segmented pictures. Of frame 12 of running/a.mp4, whose first
one is 0, the mask is running/a/00012.png in `--out`: 255 where the subject is, 0 elsewhere. A frame in which there is none has no file; with
--every, those between have what the one before them has. Of one picture the result is that picture, transparent outside of its subject.

`--model` is a model of transformers of one of three kinds:

- CLIPSeg is told the subject in words: --subject, or else the caption of each video in captions.jsonl;
- SegFormer and its like give every pixel a label: --subject is one of these, and its pixels are the mask;
- Mask2Former, MaskFormer, OneFormer and DETR find instances, each with a label: those with the label --subject are the mask, all together.
  Without --subject it is one of them, the most salient one (`salience`) of the first frame in which there is any, which is then
  followed through the video (`choose`).

An interrupted run goes on where it was; videos that have changed are segmented again.
"""

import contextlib
import difflib
import hashlib
import itertools
import json
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np
from jaxtyping import Bool, UInt8

from magvid import video
from magvid.data.folder import VideoFolder
from magvid.data.images import SUFFIXES, decode_image
from magvid.data.source import file_names
from magvid.data.text import Captions
from magvid.flags import Flag, Program, guarded, leave, parse, program_help
from magvid.runs import check_writable
from magvid.types import UserError
from tools.hub import Batches, check_dtype, check_settings, device_of, dtype_of, imported, loading, place_of

FILE, FORMAT = "masks.json", "magvid.masks/1"  # beside the masks: what they were made with, and which are complete
SAVE = 10  # seconds
SAME = 0.5  # intersection over union from which on two instances are one, whatever their labels
WORDS = ["CLIPSegForImageSegmentation"]
INSTANCES = ["Mask2FormerForUniversalSegmentation", "MaskFormerForInstanceSegmentation", "OneFormerForUniversalSegmentation", "DetrForSegmentation"]
LABELS = ["Segformer", "UperNet", "Beit", "Data2VecVision", "DPT", "MobileViT", "MobileViTV2", "MobileNetV2"]
LABELS = [f"{name}ForSemanticSegmentation" for name in LABELS]

Frame = UInt8[np.ndarray, "h w 3"]
Mask = Bool[np.ndarray, "h w"]

PROGRAM = Program(
    "python tools/segment.py",
    "Make masks of the subject of videos or pictures with a segmentation model (for MagDiff).",
    [
        Flag("data", "str", None, "FOLDER", "of videos, or, where it has none, of pictures"),
        Flag("image", "str", None, "FILE", "in place of --data: one picture or video"),
        Flag("model", "str", None, "NAME|FOLDER", "a model of the hub, such as CIDAS/clipseg-rd64-refined, or the folder of one"),
        Flag("subject", "str", None, "TEXT", "words or a label, as the model takes; default: captions, or the most salient instance"),
        Flag("out", "str", None, "FOLDER|FILE", "for the masks, to write or to go on with; of --image=PICTURE the .png file to write"),
        Flag("every", "int", 1, "N", "look at only every N-th frame of a video; those between get its mask", 1),
        Flag("threshold", "float", 0.5, "X", "least probability of a pixel (CLIPSeg) or an instance; labels of pixels have none", 0),
        Flag("batch", "int", 4, "N", "frames of a video at a time; halved where memory does not suffice", 1),
        Flag("limit", "int", None, "N", "only the first so many videos or pictures; default: all", 1),
        Flag("device", "str", None, "NAME", "cuda, cuda:1, mps or cpu; default: cuda where there is one, else cpu"),
        Flag("dtype", "str", "auto", "NAME", "float32, float16, bfloat16, or auto: as the weights are stored"),
    ],
    [
        '--data=videos --model=CIDAS/clipseg-rd64-refined --subject="dog" --out=videos/masks',
        "--data=videos --model=facebook/mask2former-swin-large-coco-panoptic --out=videos/masks",
        "--image=dog.jpg --model=models/mask2former --out=dog.png",
    ],
)


def main(argv: list[str]) -> None:
    if {"--help", "-h"} & set(argv):
        print(program_help(PROGRAM))
        return
    values = parse(PROGRAM, argv, need="data|image model out")
    out, picture = pathlib.Path(values.out).expanduser(), bool(values.image) and not values.image.lower().endswith(video.SUFFIXES)
    check_values(values, out, picture)
    # only where something is to be segmented: a model takes a while to load
    ask = Batches(lambda: load_model(values.model, values.device, values.dtype, values.subject, values.threshold), values.batch)
    if picture:
        return cut_out(pathlib.Path(values.image).expanduser(), out, values.subject, ask)
    settings = dict(model=values.model.rstrip("/"), subject=values.subject, threshold=values.threshold, every=values.every)
    done = open_masks(out, settings)
    items = [of_video(values.image)] if values.image else of_folder(values.data, out, values.limit)
    segment(items, out, settings, done, ask)


def check_values(values: Any, out: pathlib.Path, picture: bool) -> None:
    """UserError, before anything slow, for flags that cannot be meant."""
    if values.subject is not None and not values.subject.strip():
        raise UserError('--subject is empty: say what is to be segmented, such as --subject="dog", or leave it out')
    if values.threshold > 1:
        raise UserError(f"--threshold={values.threshold:g}: a probability, from 0 to 1")
    check_dtype(values.dtype)
    if values.image and not pathlib.Path(values.image).expanduser().is_file():
        raise UserError(f"there is no file {values.image}: --image is one picture or video; a folder of them is --data")
    if values.image and values.limit or picture and values.every != 1:
        raise UserError(f"--{'limit goes with --data' if values.limit else 'every goes with videos'}")
    if not picture and out.suffix.lower() in {*SUFFIXES, *video.SUFFIXES}:
        raise UserError(f"--out={values.out}: name a folder, for the masks are many")
    if picture and (out.suffix.lower() != ".png" or out.is_dir()):
        raise UserError(f"--out={values.out}: name a file *.png, for the picture with all but its subject transparent")
    if picture and out.exists() and out.samefile(pathlib.Path(values.image).expanduser()):
        raise UserError(f"--out={values.out} is the picture itself: give another name")
    check_writable(out.parent if picture else out, "--out")


# Videos and pictures ------------------------------------------------------------------------------------------------


class Unusable(UserError):
    """Why one of several videos or pictures has no masks."""


class Item(NamedTuple):
    """A video or picture; folder: of its masks, within that of all; opened: gives the digest of its content, and its frames."""

    name: str
    folder: str
    caption: str | None
    opened: Callable[[], tuple[str, Iterator[Frame]]]


def of_video(file: str) -> Item:
    path = pathlib.Path(file).expanduser()
    return Item(path.name, "", None, lambda: (digest_of(path), (frame.rgb() for frame in video.decode(path))))


def of_folder(data: str, out: pathlib.Path, limit: int | None) -> list[Item]:
    """The videos that VideoFolder finds usable, or, where there is none at all, the pictures."""
    path = pathlib.Path(data).expanduser()
    names = [] if any(file_names(path, video.SUFFIXES)) else sorted(file_names(path, SUFFIXES))
    if names:
        if out.resolve().is_relative_to(path.resolve()):
            raise UserError(f"--out={out} lies inside of --data={data}: the masks would be taken for pictures, give a folder elsewhere")
        opened = lambda k: (digest_of(path / names[k]), map(decode_image, [path / names[k]]))
    else:
        source = VideoFolder(path, 1, 16, 16)
        names, opened = source.files, lambda k: source.whole(k)[1:]
    file, folders = path / "captions.jsonl", {}
    texts = Captions(str(file)).texts if file.is_file() else {}
    captions = {pathlib.PurePosixPath(name).as_posix(): next(filter(str.strip, found), None) for name, found in texts.items()}
    for name in names:
        folder = pathlib.PurePosixPath(name).with_suffix("").as_posix()
        if other := folders.get(folder):
            raise UserError(f"{other} and {name} would have their masks in one folder, {folder}: rename one of them")
        folders[folder] = name
    items = [Item(name, folder, captions.get(name), lambda k=k: opened(k)) for k, (folder, name) in enumerate(folders.items())]
    return items[:limit]


def digest_of(file: pathlib.Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """What goes wrong within is the fault of the file that is read."""
    try:
        yield
    except (UserError, OSError) as error:
        raise Unusable(str(error)) from error


@contextlib.contextmanager
def writing(file: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{file} cannot be written ({error.strerror or error}): make room or give another --out") from error


# What is there ------------------------------------------------------------------------------------------------------


def open_masks(out: pathlib.Path, settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Which videos are complete, by their names: {"digest", "caption" (where it was the subject, else None), "frames" (that were looked
    at), "masks"}. UserError where `out` holds something else, or masks that were made with other settings.
    """
    file = out / FILE
    if not file.exists():
        if out.exists() and any(out.iterdir()):
            raise UserError(f"--out={out} is not empty, and not of this tool, for it has no {FILE}: give a folder of its own")
        return {}
    try:
        content = json.loads(file.read_text("utf-8"))
        before, done = content["settings"], content["done"]
        if content["format"] != FORMAT or any(set(row) != {"digest", "caption", "frames", "masks"} for row in done.values()):
            raise ValueError(f"not {FORMAT}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} cannot be read, is another file or damaged ({error!r}): delete {out} or give another --out") from error
    if before != settings and not any(row["masks"] for row in done.values()):
        return {}  # other settings may do better
    check_settings(out, "segmented", before, settings)
    return done


def save(out: pathlib.Path, settings: Mapping[str, Any], done: Mapping[str, Any]) -> None:
    """Replaces the file at once."""
    partial = out / f".{FILE}.{os.getpid()}"
    rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(done[name])}" for name in sorted(done))
    with writing(out / FILE):
        try:
            out.mkdir(parents=True, exist_ok=True)
            partial.write_text(f'{{"format": "{FORMAT}", "settings": {json.dumps(settings)}, "done": {{\n{rows}\n}}}}\n', "utf-8")
            os.replace(partial, out / FILE)
        finally:
            partial.unlink(missing_ok=True)


def masks_in(folder: pathlib.Path) -> list[pathlib.Path]:
    """The folder may also hold those of other videos: a.mp4 and a/b.mp4."""
    return [file for file in folder.glob("*.png") if re.fullmatch(r"\d{5,}", file.stem)]


# Segmenting ---------------------------------------------------------------------------------------------------------


class Instance(NamedTuple):
    mask: Mask
    label: str
    score: float = 1.0


class Segmenter(NamedTuple):
    """What a model finds. segment: frames and texts -> what may be the subject of each frame; words: whether the texts say what it is."""

    segment: Callable[[Sequence[Frame], Sequence[str]], list[list[Instance]]]
    words: bool = False

    def __call__(self, frames: Sequence[Frame], texts: Sequence[str]) -> list[list[Instance]]:
        return self.segment(frames, texts)


def segment(items: Sequence[Item], out: pathlib.Path, settings: Mapping[str, Any], done: dict[str, Any], ask: Batches) -> None:
    """Writes the masks of all items that are not complete. What cannot be read is left out, and told of where it is among the first
    five; UserError where that is all, and where nothing was found.
    """
    rows, failed, new, before, due = [], [], 0, dict(done), clock()
    try:
        for k, item in enumerate(items, 1):
            folder = out / item.folder
            try:
                with reading():
                    digest, frames = item.opened()
                row = done.get(item.name)
                whole = row and row["digest"] == digest and row["caption"] in (None, item.caption) and row["masks"] == len(masks_in(folder))
                if not whole:
                    words = ask.load().words and not settings["subject"]
                    done.pop(item.name, None)
                    if not new:
                        save(out, settings, done)  # from here on the folder is of this tool
                    caption = item.caption if words else None
                    counts = write_masks(item.name, frames, folder, settings["every"], settings["subject"] or caption, ask)
                    row = done[item.name] = dict(digest=digest, caption=caption, **counts)
                    new += 1
                rows.append(row)
            except Unusable as error:
                failed.append(error)
                if len(items) > 1 and len(failed) <= 5:
                    print(f"left out: {error}", file=sys.stderr)
            if due():
                print(f"{k} of {len(items)} done", flush=True)
                if new:
                    save(out, settings, done)
    finally:
        if done != before:
            save(out, settings, done)
    if not rows:
        raise failed[0] if len(items) == 1 else UserError(f"none of {len(items)} videos or pictures can be segmented: {failed[0]}")
    frames, masks = (sum(row[key] for row in rows) for key in ("frames", "masks"))
    if not masks:
        raise UserError(f"no subject was found in any of {frames} frames: give a lower --threshold, another --subject or another --model")
    bare = sum(not row["masks"] for row in rows)
    told = [f"{masks} masks of {len(rows)} files", f"{frames - masks} frames without a subject"]
    told += [f"{bare} files without any"] if bare else []
    told += [f"{new} files done now"] + ([f"{len(failed)} left out"] if failed else [])
    print(f"{out}: {', '.join(told)}")


def write_masks(name: str, frames: Iterator[Frame], folder: pathlib.Path, every: int, text: str | None, ask: Batches) -> dict[str, int]:
    """Of one video, all or none; how many frames there are, and how many have a mask. Of `every` frames the first is looked at."""
    clear(folder)
    if ask.load().words and not text:
        raise Unusable(f'{name} has no caption: give --subject, or add a line {{"file": "{name}", "caption": "..."}} to captions.jsonl')
    numbered, subject, total, written, due = enumerate(read(frames)), None, 0, 0, clock()
    try:
        while group := list(itertools.islice(numbered, ask.size * every)):
            looked = group[::every]
            answers = ask([frame for _, frame in looked], [text or ""] * len(looked))
            for k, instances in enumerate(answers):
                if found := choose(instances, subject):
                    subject = found
                    for number, _ in group[k * every : (k + 1) * every]:
                        with writing(file := folder / f"{number:05d}.png"):
                            video.write_image(file, found.mask.astype(np.uint8) * 255)
                        written += 1
            total += len(group)
            if due():
                print(f"{name}: {total} frames", flush=True)
    except BaseException:  # Ctrl-C as well: half of the masks would say that the other frames have no subject
        clear(folder)
        raise
    if not total:
        raise Unusable(f"{name} holds no frames any more")
    return dict(frames=total, masks=written)


def read(frames: Iterator[Frame]) -> Iterator[Frame]:
    with reading():
        yield from frames


def clear(folder: pathlib.Path) -> None:
    for file in masks_in(folder):
        file.unlink(missing_ok=True)


def clock() -> Callable[[], bool]:
    """Gives whether SAVE seconds are over since it was made, or since that was so."""
    last = time.monotonic()

    def due() -> bool:
        nonlocal last
        over = time.monotonic() - last > SAVE
        last = time.monotonic() if over else last
        return over

    return due


def cut_out(image: pathlib.Path, out: pathlib.Path, subject: str | None, ask: Batches) -> None:
    """Writes the picture with all but its subject transparent."""
    frame = decode_image(image)
    if ask.load().words and not subject:
        raise UserError('the model is told the subject in words: give --subject, such as --subject="dog"')
    if (found := choose(ask([frame], [subject or ""])[0], None)) is None:
        raise UserError(f"no subject was found in {image}: give a lower --threshold, another --subject or another --model")
    with writing(out):
        video.write_image(out, np.dstack([frame, found.mask.astype(np.uint8) * 255]))
    print(f"{out}: {found.label}, {found.mask.mean():.1%} of the picture")


# Which instance is the subject --------------------------------------------------------------------------------------


def choose(instances: Sequence[Instance], before: Instance | None) -> Instance | None:
    """The most salient one, or the one that was the subject `before`: that with the largest intersection over union, if this is at least
    SAME or the labels are equal; of this label also one that does not overlap, the most salient. None where there is no such.
    """
    if before is None:
        return max(instances, key=salience, default=None)
    key = lambda one: (iou(one.mask, before.mask), salience(one))
    best = max(instances, key=key, default=None)
    if best and iou(best.mask, before.mask) >= SAME:
        return best
    return max((one for one in instances if one.label == before.label), key=key, default=None)


def salience(one: Instance) -> float:
    """Score x area, in which a pixel counts exp(-2 d^2), d its distance from the centre in halves of the height and width; less what an
    instance loses as background does, by lying along the border of the picture: exp(-(pixels there)^2 / area / 2) (boundary connectivity:
    Zhu et al., CVPR 2014).
    """
    y, x = (np.exp(-2 * ((np.arange(n) + 0.5) / n * 2 - 1) ** 2) for n in one.mask.shape)
    border = one.mask[[0, -1]].sum() + one.mask[1:-1, [0, -1]].sum()
    return float(one.score * (y @ one.mask @ x) * np.exp(-(border**2) / one.mask.sum() / 2))


def iou(a: Mask, b: Mask) -> float:
    return float((a & b).sum() / (a | b).sum()) if a.shape == b.shape else 0.0  # a video may change its size


# The model ----------------------------------------------------------------------------------------------------------


def load_model(name: str, device: str | None, dtype: str, subject: str | None, threshold: float) -> Segmenter:
    """A model of the hub or of a folder. UserError where there is none, or none that segments, or where it does not know the subject."""
    autos = ["AutoConfig", "AutoProcessor", "AutoImageProcessor", "CLIPSegForImageSegmentation"]
    autos += ["AutoModelForSemanticSegmentation", "AutoModelForUniversalSegmentation"]
    torch, auto_config, auto_processor, auto_image_processor, clipseg, semantic, universal = imported(*autos)
    where, device = place_of(name), device_of(torch, device)
    with loading(name, "segments pictures", "facebook/mask2former-swin-large-coco-panoptic"):
        config = auto_config.from_pretrained(where, trust_remote_code=False)
        kind = kind_of(config, name)
        words, labels, oneformer = kind in WORDS, kind in LABELS, kind.startswith("OneFormer")
        wanted = set() if words else label_ids(config.id2label, subject, name, labels)
        # OneFormer's file of names, which is for training, would be looked for on the hub
        options = dict(class_info_file=None) if oneformer else {}
        processor = (auto_processor if words or oneformer else auto_image_processor).from_pretrained(where, **options)
        auto_model = clipseg if words else semantic if labels else universal
        model = auto_model.from_pretrained(where, dtype=dtype_of(torch, dtype)).eval().to(device)

    @torch.inference_mode()
    def ask(frames: Sequence[Frame], texts: Sequence[str]) -> list[list[Instance]]:
        more, sizes = {}, [frame.shape[:2] for frame in frames]
        if words:
            more = dict(text=list(texts), padding=True, truncation=True, max_length=config.text_config.max_position_embeddings)
        elif oneformer:
            more = dict(task_inputs=["panoptic" if wanted else "instance"] * len(frames))  # of the latter only things, no background
        elif getattr(processor, "do_center_crop", False):  # all of the frame, squeezed
            more = dict(do_center_crop=False, size={side: processor.crop_size[side] for side in ("height", "width")})
        images = [video.import_pillow().fromarray(np.ascontiguousarray(frame)) for frame in frames]
        inputs = {key: value.to(device) for key, value in processor(images=images, return_tensors="pt", **more).items()}
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        outputs = model(**inputs)
        if words:
            masks = [resized(one[None], size)[0].sigmoid() >= threshold for one, size in zip(outputs.logits, sizes, strict=True)]
            found = [[Instance(mask.cpu().numpy(), text)] for mask, text in zip(masks, texts, strict=True)]
        elif labels:
            maps = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
            found = [[Instance(np.isin(ids.cpu().numpy(), list(wanted)), subject)] for ids in maps]
        else:
            found = instances_of(outputs, inputs.get("pixel_mask"), sizes, config.id2label, threshold)
        if wanted and not labels:
            names = {config.id2label[k] for k in wanted}
            alike = [[one.mask for one in instances if one.label in names] for instances in found]
            found = [[Instance(np.any(masks, axis=0), subject)] if masks else [] for masks in alike]
        return [[one for one in instances if one.mask.any()] for instances in found]

    return Segmenter(ask, words)


def kind_of(config: Any, name: str) -> str:
    """The class of the model, one of WORDS, LABELS and INSTANCES. UserError where it is another one."""
    kind = (config.architectures or [f"model of type {config.model_type}"])[0]
    if kind not in (*WORDS, *LABELS, *INSTANCES):
        raise UserError(f"{name} is a {kind}, which does not segment as this tool needs it: give one of {', '.join((*WORDS, *INSTANCES, *LABELS))}")
    return kind


def label_ids(labels: Mapping[int, str], subject: str | None, name: str, needed: bool) -> set[int]:
    """The numbers of the label `subject`; it may also be one of the names in a label such as "dog, hound"."""
    plain = lambda text: " ".join(text.casefold().split())
    quoted = lambda some: ", ".join(f'"{label}"' for label in some[:10]) + (", ..." if len(some) > 10 else "")
    if subject is None:
        if needed:
            raise UserError(f"{name} gives every pixel a label: say by --subject which is the subject's; it has {quoted([*labels.values()])}")
        return set()
    wanted = plain(subject)
    found = {k for k, label in labels.items() if wanted in {plain(label), *map(plain, label.split(","))}}
    if not found:
        near = [label for label in labels.values() if wanted in plain(label)]
        near += difflib.get_close_matches(wanted, set(labels.values()) - set(near), 5)
        hint = f"near it are {quoted(near)}" if near else f"it has {quoted([*labels.values()])}"
        raise UserError(f'{name} has no label "{subject}" (--subject); {hint}')
    return found


def instances_of(
    outputs: Any, pixel_mask: Any, sizes: Sequence[tuple[int, int]], labels: Mapping[int, str], threshold: float
) -> list[list[Instance]]:
    """Those whose score, the probability of the label times that of the mask's pixels, is at least `threshold`, as Mask2Former computes it.

    Not by the processors' post_process_*: these stretch what was padded (`pixel_mask` says what was not) over the frame, and most of them
    give a lone instance all of it.
    """
    classes, masks = (outputs[a if a in outputs else b] for a, b in (("class_queries_logits", "logits"), ("masks_queries_logits", "pred_masks")))
    scores, ids = classes.float().softmax(-1)[..., :-1].max(-1)  # the last one is: nothing
    found = []
    for k, size in enumerate(sizes):
        kept = (scores[k] >= threshold).nonzero()[:, 0]
        logits = masks[k, kept]
        if pixel_mask is not None:
            shares = (pixel_mask[k].any(axis).float().mean().item() for axis in (1, 0))
            h, w = (max(round(side * share), 1) for side, share in zip(logits.shape[1:], shares, strict=True))
            logits = logits[:, :h, :w]
        found.append([])
        for one, score, i in zip(resized(logits, size) if len(kept) else [], scores[k, kept], ids[k, kept].tolist(), strict=True):
            score = float(score * one[one > 0].sigmoid().mean()) if (one > 0).any() else 0.0
            found[-1] += [Instance((one > 0).cpu().numpy(), labels[i], score)] if score >= threshold else []
    return found


def resized(logits: Any, size: tuple[int, int]) -> Any:
    """(n a b) -> (n h w)"""
    from torch.nn.functional import interpolate

    return interpolate(logits[None].float(), size, mode="bilinear")[0]


if __name__ == "__main__":
    leave(guarded("segment", sys.argv[1:], main))
