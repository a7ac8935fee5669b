"""Sprites: an embedded, deterministic world of moving shapes with ground truth for everything.

One clip is a still background, up to two small still distractors and one main entity (shape x colour x texture) that
performs one action or an eased sequence of them. Nothing is read from disk: clip `i` is a pure function of
`(world, sizes, seed, split, i)`. Coordinates and units: see `magvid.data.sprite_world`.

Reproducibility: draws are the raw counter-based Philox stream (frozen by NumPy's compatibility policy) turned into
float64 here, and poses are rounded to multiples of 2^-20 after sin and cos, so that pixels are equal across platforms.

Splits are disjoint by construction: the green level of every background pixel is congruent to the split's number modulo
3, and no sprite ever touches the corner pixel (0, 0). Two clips of different splits therefore differ in that pixel of
every frame, whatever their seeds and indices. All else is drawn alike in all splits.
"""
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float, Int32, UInt8
import numpy as np

from magvid.data.sprite_world import (ACTIONS, BACKGROUNDS, COLOURS, EXTENT, SHAPES, TEXTURES, TONES, World, as_world,
                                      exact, paint, rasterise)

SPLITS = ("train", "validation", "test")
MAX_RADIUS = 10.0  # units; a growing entity stops here
_NEAR = 2.5  # units from the middle of the picture, within which all begins where the world says `middle`

# action: (participle, third person, instruction)
_VERBS = {"stand": ("standing", "stands still", "keep {} still"),
          "left": ("moving left", "moves left", "move {} to the left"),
          "right": ("moving right", "moves right", "move {} to the right"),
          "up": ("moving up", "moves up", "move {} up"),
          "down": ("moving down", "moves down", "move {} down"),
          "bounce": ("bouncing", "bounces", "bounce {}"),
          "grow": ("growing", "grows", "make {} grow"),
          "shrink": ("shrinking", "shrinks", "make {} shrink"),
          "spin": ("spinning", "spins", "spin {}"),
          "orbit": ("orbiting", "circles around", "move {} in a circle"),
          "jump": ("jumping", "jumps", "make {} jump")}


class _Draws:
    """Named draws out of one clip's Philox stream."""

    def __init__(self, seed: int, split: int, index: int):
        key = np.array([seed * 4 + split, index], np.uint64)
        raw = np.random.Philox(key=key).random_raw(128)
        self._next = iter(((raw >> np.uint64(11)).astype(np.float64) * 2.0**-53).tolist())

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * next(self._next)

    def choice(self, options):
        return options[int(next(self._next) * len(options))]


def _background(kind: str, tone: str, draws: _Draws, split: int, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """Dark, hardly saturated; green levels are congruent to `split` modulo 3 (see the module's docstring)."""
    low, high = draws.between(20, 40), draws.between(50, 70)
    cell = max(min(height, width) / 32 * draws.between(5, 8), 2)
    flip, corner = draws.choice((False, True)), draws.choice(((1, 0), (0, 1), (1, 1)))
    y, x = np.arange(height)[:, None] + 0.5, np.arange(width)[None] + 0.5
    if kind == "plain":
        level = np.full((height, width), high if flip else low)
    elif kind == "gradient":
        along = (corner[0] * y / height + corner[1] * x / width) / sum(corner)
        level = low + (high - low) * (1 - along if flip else along)
    else:
        odd = (np.floor(y / cell) + np.floor(x / cell)) % 2 == flip
        level = np.where(odd, low, 0.5 * (low + high))
    green = 3 * np.floor(level / 3) + split
    red, blue = TONES[tone]
    return np.stack([np.floor(green * red), green, np.floor(green * blue)], -1).astype(np.uint8)


@dataclass(frozen=True)
class _Move:
    """One action with its drawn size; `delta` is its path relative to where it begins."""
    action: str
    size: float        # pixels travelled, factor of scale, or radians turned
    sign: float = 1.0
    phase: float = 0.0

    def delta(self, s: np.ndarray) -> np.ndarray:
        """(n, 4): dy, dx (pixels), factor of scale, d angle at times s in [0, 1] of the action."""
        out = np.stack([np.zeros_like(s), np.zeros_like(s), np.ones_like(s), np.zeros_like(s)], -1)
        match self.action:
            case "left" | "right":
                out[:, 1] = self.size * s * (1 if self.action == "right" else -1)
            case "up" | "down":
                out[:, 0] = self.size * s * (1 if self.action == "down" else -1)
            case "bounce":  # two bounces off the floor
                out[:, 0] = -self.size * np.abs(np.sin(2 * np.pi * s))
            case "jump":    # at rest, one parabola, at rest
                arc = np.clip((s - 0.2) / 0.6, 0, 1)
                out[:, 0] = -self.size * 4 * arc * (1 - arc)
            case "grow":
                out[:, 2] = 1 + (self.size - 1) * s
            case "shrink":
                out[:, 2] = 1 + (1 / self.size - 1) * s
            case "spin":
                out[:, 3] = self.sign * self.size * s
            case "orbit":   # one full circle
                turn = self.phase + self.sign * 2 * np.pi * s
                out[:, 0] = self.size * (np.sin(turn) - np.sin(self.phase))
                out[:, 1] = self.size * (np.cos(turn) - np.cos(self.phase))
        return out


def _margin(radius: float) -> float:
    return EXTENT * radius + 1.0  # keeps the sprite and its soft edge off the frame's border


def _draw_move(action: str, radius: float, source: "Sprites", draws: _Draws) -> _Move:
    share, sign, phase = draws.between(0, 1), draws.choice((-1.0, 1.0)), draws.between(0, 2 * np.pi)
    room_y, room_x = (min(_room(side, radius, source), 20 * source.unit) for side in source.size)
    match action:
        case "left" | "right":
            size = room_x * (0.6 + 0.4 * share)
        case "up" | "down" | "bounce" | "jump":
            size = room_y * (0.6 + 0.4 * share)
        case "orbit":
            size = min(room_y, room_x) / 2 * (0.65 + 0.35 * share)
        case "grow" | "shrink":
            most = 1.8 if source.world.middle else min(MAX_RADIUS * source.unit / radius, 2.0)
            size = 1.5 + (most - 1.5) * share
        case "spin":    # 130 to 190 degrees: below every shape's symmetry per frame, so visible from 4 frames on
            size = np.pi * (130 + 60 * share) / 180
        case "stand":
            size = 0.0
    return _Move(action, size, sign, phase)


def _room(side: int, radius: float, source: "Sprites") -> float:
    """Pixels that an entity may travel; where all begin near the middle, to any side."""
    if source.world.middle:
        return side / 2 - _NEAR * source.unit - _margin(radius)
    return side - 2 * _margin(radius)


def _eased(s: np.ndarray, ease: float = 0.2) -> np.ndarray:
    """Time from 0 to 1 that starts and stops at rest: accelerates for `ease`, runs evenly, brakes for `ease`."""
    near = np.minimum(s, 1 - s)
    way = np.where(near < ease, near * near / (2 * ease), near - ease / 2) / (1 - ease)
    return np.where(s <= 0.5, way, 1 - way)


def _path(moves: list[_Move], frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Relative poses (t, 4) and the number of the move (t,) of each frame; several moves are eased at their ends."""
    time = np.arange(frames) / (frames - 1) * len(moves)
    number = np.minimum(time.astype(np.int64), len(moves) - 1)
    path, end = np.empty((frames, 4)), np.array([0, 0, 1.0, 0])
    for k, move in enumerate(moves):
        s = time[number == k] - k
        if len(moves) > 1:
            s = _eased(s)
        for rows, delta in ((number == k, move.delta(s)), (None, move.delta(np.ones(1)))):
            delta[:, [0, 1, 3]] += end[[0, 1, 3]]
            delta[:, 2] *= end[2]
            if rows is None:
                end = delta[0]
            else:
                path[rows] = delta
    return path, number


_SIZES = ((5.5, "small"), (7.0, "medium"), (np.inf, "large"))


def _place(y: float, x: float, height: int, width: int) -> str:
    row = ("top", "centre", "bottom")[min(int(3 * y / height), 2)]
    column = ("left", "centre", "right")[min(int(3 * x / width), 2)]
    return "centre" if row == column == "centre" else f"{row} {column}"


@dataclass(frozen=True)
class Sprites:
    """Source of 2^20 clips per split, random access, disjoint between splits by construction (module's docstring).

    Attributes:
      split: "train", "validation" or "test".
      frames, height, width: clip size; frames >= 4, height and width >= 16.
      seed: another 2^20 clips per seed.
      world: a preset's name out of `WORLDS` ("full", "small") or a `World`.
      sequence: probability that a clip holds two actions (two or three from 24 frames on), eased at their changes
        (needs 12 frames); `label` and `action` are then those of the first one.
      keys: the record's fields to produce; None: all. ("video", "label") is the fast path of training.

    Record:
      video uint8 (t h w 3); label int32, index into `classes` (shape x action, chance level `chance`);
      caption, instruction str; motion str, of the caption what is done alone; states: four str on what is visible at the start, 1/3, 2/3 and the end;
      entity uint8 (h w 3): the entity of the first frame, moved to the middle, on black; entity_mask bool (h w);
      masks bool (t h w): where the entity covers at least half of a pixel;
      actions int32 (t,), action of each frame; track float32 (t, 5): centre y, centre x, radius (pixels), angle
      (radians), visible (1); distractors float32 (max_distractors, 7): centre y, centre x, radius, angle, shape,
      colour, present (all 0 where absent); shape, colour, texture, background, tone, action int32.
      Ids of parts index this module's full tables (SHAPES, COLOURS, ...), in every world.
    """
    split: str = "train"
    frames: int = 16
    height: int = 32
    width: int = 32
    seed: int = 0
    world: str | World = "full"
    sequence: float = 0.0
    keys: tuple[str, ...] | None = None

    def __post_init__(self):
        object.__setattr__(self, "world", as_world(self.world))
        if self.keys is not None:
            object.__setattr__(self, "keys", tuple(self.keys))
        wrong = set(self.keys or ()) - set(KEYS)
        if wrong:
            raise ValueError(f"Sprites.keys: unknown {sorted(wrong)}; choose out of {KEYS}.")
        if self.split not in SPLITS:
            raise ValueError(f"Sprites.split={self.split!r}: choose one of {SPLITS}.")
        if self.frames < 4 or min(self.height, self.width) < 16:
            raise ValueError(f"Sprites of {self.frames}x{self.height}x{self.width}: give at least 4x16x16.")
        if not 0 <= self.seed < 2**61:
            raise ValueError(f"Sprites.seed={self.seed}: give an integer in [0, 2^61).")
        if not 0 <= self.sequence <= 1 or (self.sequence and self.frames < 12):
            raise ValueError(f"Sprites.sequence={self.sequence} with {self.frames} frames: give a probability in "
                             "[0, 1] and at least 12 frames for sequences.")
        if self.sequence and self.world.middle:
            raise ValueError(f"Sprites.sequence={self.sequence}: where all begin in the middle there is room for one action.")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.height, self.width

    @property
    def unit(self) -> float:
        """Pixels per unit of length: 1 at 32 x 32."""
        return min(self.size) / 32

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels, such as "disc moving left"."""
        return tuple(f"{shape} {_VERBS[action][0]}" for shape, action in self.world.pairs)

    @property
    def num_classes(self) -> int:
        return len(self.world.pairs)

    @property
    def chance(self) -> float:
        """Accuracy of guessing: labels are uniform."""
        return 1 / self.num_classes

    @property
    def world_name(self) -> str:
        """Name to print beside every number from this source."""
        return self.world.name + (f"+sequence({self.sequence:g})" if self.sequence else "")

    def __len__(self) -> int:
        return 2**20

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"Sprites clip {index}: give an index in [0, {len(self)}).")
        clip = _draw_clip(self, int(index))
        return {key: getattr(clip, key)() for key in (self.keys or KEYS)}


@dataclass(frozen=True)
class _Clip:
    """All draws of one clip; each method makes one field of the record."""
    source: Sprites
    parts: dict[str, str]                  # shape, colour, texture, background, tone, action
    moves: tuple[str, ...]                 # actions in their order
    number: np.ndarray                     # (t,) index into moves
    pose: np.ndarray                       # (t, 4)
    others: tuple[tuple[str, str, np.ndarray], ...]   # shape, colour, pose (4,) of distractors
    ground: np.ndarray                     # (h, w, 3) uint8

    def video(self) -> UInt8[np.ndarray, "t h w 3"]:
        image = self.ground[None].copy()
        for shape, colour, pose in self.others:
            paint(image, shape, colour, "plain", pose[None])
        video = np.repeat(image, len(self.pose), axis=0)
        paint(video, self.parts["shape"], self.parts["colour"], self.parts["texture"], self.pose)
        return video

    def label(self) -> np.int32:
        return np.int32(self.source.world.pairs.index((self.parts["shape"], self.parts["action"])))

    def _noun(self) -> str:
        texture = self.parts["texture"]
        return " ".join([self.parts["colour"], *([] if texture == "plain" else [texture]), self.parts["shape"]])

    def caption(self) -> str:
        ground = {"plain": "", "gradient": "shaded ", "checker": "checkered "}[self.parts["background"]]
        tone = self.parts["tone"]
        return f"{_article(self._noun())} {self.motion()} on {_article(ground + tone)} background"

    def motion(self) -> str:
        return ", then ".join(_VERBS[action][1] for action in self.moves)

    def instruction(self) -> str:
        first, *rest = (_VERBS[action][2] for action in self.moves)
        return ", then ".join([first.format(f"the {self._noun()}"), *(text.format("it") for text in rest)])

    def states(self) -> tuple[str, ...]:
        out = []
        for k in range(4):
            y, x, radius, angle = self.pose[round((len(self.pose) - 1) * k / 3)]
            size = next(word for limit, word in _SIZES if radius < limit * self.source.unit)
            turned = round(np.degrees(angle - self.pose[0, 3]))
            turn = f", turned by {abs(turned)} degrees {'clockwise' if turned > 0 else 'counterclockwise'}"
            place = _place(y, x, *self.source.size)
            out.append(f"the {size} {self._noun()} is at the {place}{turn if turned else ''}")
        return tuple(out)

    def _entity(self) -> tuple[np.ndarray, np.ndarray]:
        height, width = self.source.size
        pose = self.pose[:1].copy()
        pose[0, :2] = height / 2, width / 2
        image = np.zeros((1, height, width, 3), np.uint8)
        paint(image, self.parts["shape"], self.parts["colour"], self.parts["texture"], pose)
        alpha, _ = rasterise(self.parts["shape"], "plain", pose, np.arange(height)[None] + 0.5,
                             np.arange(width)[None] + 0.5)
        return image[0], alpha[0] >= 0.5

    def entity(self) -> UInt8[np.ndarray, "h w 3"]:
        return self._entity()[0]

    def entity_mask(self) -> Bool[np.ndarray, "h w"]:
        return self._entity()[1]

    def masks(self) -> Bool[np.ndarray, "t h w"]:
        height, width = self.source.size
        rows, columns = (np.broadcast_to(np.arange(side) + 0.5, (len(self.pose), side)) for side in (height, width))
        return rasterise(self.parts["shape"], "plain", self.pose, rows, columns)[0] >= 0.5

    def actions(self) -> Int32[np.ndarray, "t"]:
        return np.array([ACTIONS.index(action) for action in self.moves], np.int32)[self.number]

    def track(self) -> Float[np.ndarray, "t 5"]:
        return np.concatenate([self.pose, np.ones((len(self.pose), 1))], 1).astype(np.float32)

    def distractors(self) -> Float[np.ndarray, "n 7"]:
        out = np.zeros((self.source.world.max_distractors, 7), np.float32)
        for row, (shape, colour, pose) in zip(out, self.others):
            row[:] = (*pose, SHAPES.index(shape), list(COLOURS).index(colour), 1)
        return out

    def shape(self) -> np.int32:
        return np.int32(SHAPES.index(self.parts["shape"]))

    def colour(self) -> np.int32:
        return np.int32(list(COLOURS).index(self.parts["colour"]))

    def texture(self) -> np.int32:
        return np.int32(TEXTURES.index(self.parts["texture"]))

    def background(self) -> np.int32:
        return np.int32(BACKGROUNDS.index(self.parts["background"]))

    def tone(self) -> np.int32:
        return np.int32(list(TONES).index(self.parts["tone"]))

    def action(self) -> np.int32:
        return np.int32(ACTIONS.index(self.parts["action"]))


KEYS = ("video", "label", "caption", "motion", "instruction", "states", "entity", "entity_mask", "masks", "actions", "track",
        "distractors", "shape", "colour", "texture", "background", "tone", "action")


@dataclass(frozen=True)
class Recolour:
    """Transform: the entity is asked for in another colour of the world. `caption` and `colour` say so, `video` is as it was; for editing."""
    world: str | World = "full"

    def __call__(self, record: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        names = list(COLOURS)
        old = names[int(record["colour"])]
        new = rng.choice([name for name in as_world(self.world).colours if name != old])
        caption = record["caption"].replace(f"{_article(old)} ", f"{_article(new)} ", 1)
        return {**record, "caption": caption, "colour": np.int32(names.index(new))}


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _draw_clip(source: Sprites, index: int) -> _Clip:
    world, split = source.world, SPLITS.index(source.split)
    draws = _Draws(source.seed, split, index)
    shape, action = draws.choice(world.pairs)
    colour, kind, tone = (draws.choice(names) for names in (world.colours_of(shape), world.backgrounds, world.tones))
    radius = draws.between(*world.radius) * source.unit
    moves = [_draw_move(action, radius, source, draws)]
    if draws.between(0, 1) < source.sequence:
        moves = _extend(moves, shape, radius, source, draws)
    path, number = _path(moves, source.frames)
    if not world.middle:
        path[:, 2] /= path[:, 2].min()  # the drawn radius is the clip's smallest
    textures = [set(world.visible_textures(shape, move.action)) for move in moves]
    texture = draws.choice([name for name in world.textures_of(shape, colour) if all(name in t for t in textures)])
    pose = path * [1, 1, radius, 1] + [0, 0, 0, draws.between(-world.tilt, world.tilt)]
    margin = _margin(pose[:, 2].max())
    for k, side in enumerate(source.size):
        low, high = margin - path[:, k].min(), side - margin - path[:, k].max()
        if world.middle:
            low, high = (side / 2 - path[0, k] + sign * _NEAR * source.unit for sign in (-1, 1))
        pose[:, k] += draws.between(low, high)
    pose = exact(pose)
    ground = _background(kind, tone, draws, split, *source.size)
    others = _draw_others(shape, colour, pose, source, draws)
    parts = dict(shape=shape, colour=colour, texture=texture, background=kind, tone=tone, action=action)
    return _Clip(source, parts, tuple(move.action for move in moves), number, pose, others, ground)


def _extend(moves: list[_Move], shape: str, radius: float, source: Sprites, draws: _Draws) -> list[_Move]:
    """Adds up to two actions, different from the one before, for which the frame has room."""
    total = draws.choice((2, 3) if source.frames >= 24 else (2,))
    options = [action for action in source.world.actions if source.world.visible_textures(shape, action)]
    for _ in range(8):
        move = _draw_move(draws.choice(options), radius, source, draws)
        if len(moves) < total and move.action != moves[-1].action and _fits([*moves, move], radius, source):
            moves = [*moves, move]
    return moves


def _fits(moves: list[_Move], radius: float, source: Sprites) -> bool:
    path, _ = _path(moves, source.frames)
    largest = path[:, 2].max() / path[:, 2].min() * radius
    reach = path[:, :2].max(0) - path[:, :2].min(0)
    return largest <= MAX_RADIUS * source.unit and bool((reach <= np.array(source.size) - 2 * _margin(largest)).all())


def _draw_others(shape: str, colour: str, pose: np.ndarray, source: Sprites, draws: _Draws) -> tuple:
    """Distractors: small, still, at the freest of a few places, other in shape and colour; always under the entity."""
    world, out = source.world, []
    count = draws.choice(range(world.max_distractors + 1))
    taken = pose[: 1 if world.middle else None, :3]  # off the whole path they would tell where it leads
    for _ in range(count):
        radius = draws.between(2.2, 2.8) * source.unit
        margin = _margin(radius)
        places = np.array([[draws.between(margin, side - margin) for side in source.size] for _ in range(10)])
        gap = np.sqrt(((places[:, None] - taken[None, :, :2]) ** 2).sum(-1)) - taken[:, 2]
        y, x = places[gap.min(1).argmax()]
        free = [name for name in world.colours if name not in (colour, *(other[1] for other in out))]
        other = (draws.choice([name for name in world.shapes if name != shape]),
                 draws.choice(free or [name for name in world.colours if name != colour]),
                 exact(np.array([y, x, radius, draws.between(-0.25, 0.25)])))
        out.append(other)
        taken = np.concatenate([taken, other[2][None, :3]])
    return tuple(out)
