"""What the sprite world is made of: its parts by name, the `World` that says which of them appear, and its rasteriser.

Coordinates: frames span [0, h] x [0, w] pixels, the centre of pixel (i, j) is (i + 0.5, j + 0.5), y points down, angles
are radians clockwise on the screen. Lengths scale with the *unit* `min(h, w) / 32`: "5 px" means 5 px at 32 x 32.

Pixels are equal across platforms: direction cosines are rounded to multiples of 2^-20 after the only transcendental
functions (sin, cos), and all that follows (+ - * / sqrt min max floor) is exact in IEEE float64.
"""
from dataclasses import dataclass, fields, replace
from functools import cached_property

from jaxtyping import Float, UInt8
import numpy as np

SHAPES = ("disc", "square", "triangle", "star", "ring", "cross")
COLOURS = {"red": (230, 40, 40), "green": (50, 200, 70), "blue": (50, 90, 240), "yellow": (240, 220, 50),
           "cyan": (50, 210, 230), "magenta": (220, 60, 210), "orange": (245, 140, 30), "white": (240, 240, 240)}
TEXTURES = ("plain", "striped", "dotted")
BACKGROUNDS = ("plain", "gradient", "checker")
# red and blue of the background relative to its green
TONES = {"grey": (1.0, 1.0), "slate": (0.75, 1.375), "brown": (1.375, 0.75), "olive": (1.0, 0.625)}
ACTIONS = ("stand", "left", "right", "up", "down", "bounce", "grow", "shrink", "spin", "orbit", "jump")

EXTENT = 1.15     # no shape reaches further than this many radii from its centre
_DARK = 0.6       # brightness of stripes and dots relative to the entity's colour
_STAR = np.round(np.array([0.809016994374947, 0.587785252292473]) * 2**20) / 2**20  # cos, sin of 36 degrees


@dataclass(frozen=True)
class World:
    """What can appear. The defaults are the full world; every other one carries its difference in its `name`.

    Attributes:
      shapes, colours, textures, actions, backgrounds, tones: names out of this module's tables.
      max_distractors: each clip holds 0 to this many (at most 2).
      radius: range of the entity's smallest radius within a clip, in units.
      tilt: the entity's first angle is uniform in [-tilt, tilt] radians.
      middle: the first frame tells nothing of the action: every entity begins near the middle, and `radius` is that of the
        first frame (at most 5, so that there is room to grow). Otherwise it begins where its path has room, so that of what
        begins at the left, or large, one can guess that it moves right, or shrinks.
      combined: "seen" leaves out a sixth of the combinations of shape, colour and texture, which "unseen" alone has: one texture
        of every other shape and colour; so each part is seen, in other combinations. "": all. Needs all textures, and no spin.
    """
    shapes: tuple[str, ...] = SHAPES
    colours: tuple[str, ...] = tuple(COLOURS)
    textures: tuple[str, ...] = TEXTURES
    actions: tuple[str, ...] = ACTIONS
    backgrounds: tuple[str, ...] = BACKGROUNDS
    tones: tuple[str, ...] = tuple(TONES)
    max_distractors: int = 2
    radius: tuple[float, float] = (5.0, 6.5)
    tilt: float = 0.25
    middle: bool = False
    combined: str = ""

    def __post_init__(self):
        tables = dict(shapes=SHAPES, colours=COLOURS, textures=TEXTURES, actions=ACTIONS, backgrounds=BACKGROUNDS,
                      tones=TONES)
        for name, table in tables.items():
            given = tuple(getattr(self, name))
            object.__setattr__(self, name, given)
            wrong = [value for value in given if value not in table]
            if wrong or not given or len(set(given)) < len(given):
                raise ValueError(f"World.{name}={given}: choose one or more different names out of {tuple(table)}.")
        object.__setattr__(self, "radius", tuple(float(r) for r in self.radius))
        if len(self.radius) != 2 or not 3 <= self.radius[0] <= self.radius[1] <= 6.5:
            raise ValueError(f"World.radius={self.radius}: give (smallest, largest) within [3, 6.5].")
        if self.middle and self.radius[1] > 5:
            raise ValueError(f"World.radius={self.radius} with middle=True: give at most 5, so that there is room to grow.")
        if self.combined not in ("", "seen", "unseen"):
            raise ValueError(f'World.combined="{self.combined}": choose seen, unseen or "".')
        if self.combined and (len(self.textures) < len(TEXTURES) or "spin" in self.actions):
            raise ValueError(f'World.combined="{self.combined}" needs all textures and no spin, which a plain disc hides.')
        if not 0 <= self.max_distractors <= 2:
            raise ValueError(f"World.max_distractors={self.max_distractors}: give 0, 1 or 2.")
        if self.max_distractors and min(len(self.shapes), len(self.colours)) < 2:
            raise ValueError("Distractors differ from the entity in shape and colour: give World at least two of both, "
                             "or max_distractors=0.")
        if not self.pairs:
            raise ValueError(f"World(shapes={self.shapes}, actions={self.actions}, textures={self.textures}): a plain "
                             "disc or ring cannot spin visibly; add a shape, an action or a texture.")

    @cached_property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """All (shape, action) that can be seen: a disc or ring spins only where the world has a texture."""
        return tuple((s, a) for s in self.shapes for a in self.actions if self.visible_textures(s, a))

    def visible_textures(self, shape: str, action: str) -> tuple[str, ...]:
        """Textures with which `shape` can be seen doing `action`."""
        blind = action == "spin" and shape in ("disc", "ring")
        return tuple(t for t in self.textures if not (blind and t == "plain"))

    def textures_of(self, shape: str, colour: str) -> tuple[str, ...]:
        """Textures in which this shape of this colour appears, see `combined`."""
        number = SHAPES.index(shape) + tuple(COLOURS).index(colour)
        unseen = lambda texture: number % 2 == 0 and (number + TEXTURES.index(texture)) % len(TEXTURES) == 0
        return tuple(t for t in self.textures if not self.combined or unseen(t) == (self.combined == "unseen"))

    def colours_of(self, shape: str) -> tuple[str, ...]:
        """Colours in which this shape appears in some texture."""
        return tuple(c for c in self.colours if self.textures_of(shape, c))

    @property
    def name(self) -> str:
        """A preset's name, or "full-custom(...)" listing what differs from the full world."""
        for name, world in WORLDS.items():
            if self == world:
                return name
        differs = [(f.name, getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) != f.default]
        text = (f"{k}={'+'.join(map(str, v)) if isinstance(v, tuple) else v}" for k, v in differs)
        return f"full-custom({', '.join(text)})"


WORLDS = {
    "full": World(),
    "small": World(shapes=("disc", "ring", "cross"), colours=("red", "green", "blue", "yellow"),
                   textures=("plain",), actions=("left", "right", "up", "down", "grow", "shrink"),
                   backgrounds=("plain",), tones=("grey",), max_distractors=0, radius=(6.0, 6.5), tilt=0.0),
}
ENTITIES = World(shapes=("disc", "square", "cross"), actions=("left", "right", "up", "down"),
                 backgrounds=("plain",), tones=("grey",), max_distractors=0, radius=(6.0, 6.5), tilt=0.0)
ENTITY_WORLDS = {f"entities-{some}": replace(ENTITIES, combined=some) for some in ("seen", "unseen")}
ENTITY_WORLDS["entities-moves"] = replace(ENTITIES, combined="seen", actions=tuple(a for a in ACTIONS if a != "spin"))  # for CLIP
WORLDS |= {f"{name}-middle": replace(world, middle=True, radius=(4.5, 5.0)) for name, world in WORLDS.items()}
WORLDS |= {"entities": ENTITIES, **ENTITY_WORLDS}


def as_world(world: str | World) -> World:
    """A preset by name, or the world itself."""
    if isinstance(world, World):
        return world
    if world not in WORLDS:
        raise ValueError(f"Unknown sprite world {world!r}: choose one of {tuple(WORLDS)} or give a World.")
    return WORLDS[world]


def exact(x):
    """Rounded to a multiple of 2^-20: hides last-bit differences between implementations of sin and cos."""
    return np.round(x * 2.0**20) * 2.0**-20


def distance(shape: str, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Signed distance (negative inside, in radii) of points given in the shape's own frame, in radii."""
    if shape == "disc":
        return np.sqrt(y * y + x * x) - 1
    if shape == "ring":
        return np.abs(np.sqrt(y * y + x * x) - 0.75) - 0.25
    y_abs, x_abs = np.abs(y), np.abs(x)
    if shape == "square":
        return np.maximum(y_abs, x_abs) - 0.8
    if shape == "triangle":
        return np.maximum(y, 0.8660254 * x_abs - 0.5 * y) - 0.575
    if shape == "cross":
        long, thin = 1.05, 0.36
        return np.minimum(np.maximum(y_abs - long, x_abs - thin), np.maximum(y_abs - thin, x_abs - long))
    if shape == "star":  # fold into one tenth, then the distance to the edge from the tip to the notch
        cos, sin = _STAR
        x, y = x_abs, -y
        for kx, ky in ((cos, -sin), (-cos, -sin)):
            over = 2 * np.maximum(kx * x + ky * y, 0)
            x, y = x - over * kx, y - over * ky
        x = np.abs(x)
        tip, notch = EXTENT, 0.52
        edge_x, edge_y = notch * sin, notch * cos - tip
        return ((tip - y) * edge_x + x * edge_y) / -np.sqrt(edge_x**2 + edge_y**2)
    raise ValueError(f"Unknown shape {shape!r}: choose one of {SHAPES}.")


def brightness(texture: str, y: np.ndarray, x: np.ndarray, radius: np.ndarray) -> np.ndarray | float:
    """Factor in [0.6, 1] on the colour at points of the shape's own frame (in radii); edges are one pixel wide."""
    if texture == "plain":
        return 1.0
    if texture == "striped":  # horizontal stripes of period 0.8, the middle one bright
        phase = y * 1.25 + 0.5
        depth = (0.25 - np.abs(phase - np.floor(phase) - 0.5)) * 0.8
        dark = np.clip(0.5 - depth * radius, 0, 1)
    elif texture == "dotted":  # dots of radius 0.24 on a square lattice of period 0.8, none in the middle
        fy, fx = y * 1.25, x * 1.25
        fy, fx = fy - np.floor(fy) - 0.5, fx - np.floor(fx) - 0.5
        dark = np.clip(0.5 - (np.sqrt(fy * fy + fx * fx) * 0.8 - 0.24) * radius, 0, 1)
    else:
        raise ValueError(f"Unknown texture {texture!r}: choose one of {TEXTURES}.")
    return 1 - (1 - _DARK) * dark


def rasterise(
    shape: str, texture: str, pose: Float[np.ndarray, "n 4"], rows: Float[np.ndarray, "n r"],
    columns: Float[np.ndarray, "n c"],
) -> tuple[Float[np.ndarray, "n r c"], Float[np.ndarray, "n r c"] | float]:
    """Coverage in [0, 1] and brightness of a sprite at pixel centres.

    Args:
      pose: centre y, centre x, radius (pixels), angle (radians) of n sprites.
      rows, columns: coordinates of the pixel centres of each sprite's window.
    """
    cy, cx, radius, angle = (pose[:, k, None, None] for k in range(4))
    cos, sin = exact(np.cos(angle)) / radius, exact(np.sin(angle)) / radius
    dy, dx = rows[:, :, None] - cy, columns[:, None, :] - cx
    y, x = dy * cos - dx * sin, dy * sin + dx * cos
    alpha = np.clip(0.5 - distance(shape, y, x) * radius, 0, 1)
    return alpha, brightness(texture, y, x, radius)


def paint(video: UInt8[np.ndarray, "t h w 3"], shape: str, colour: str, texture: str,
           pose: Float[np.ndarray, "t 4"]) -> None:
    """Draws the sprite into each frame, touching only its bounding box."""
    frames, height, width, _ = video.shape
    size = min(2 * int(EXTENT * pose[:, 2].max() + 1.5) + 1, height, width)
    corner = np.floor(pose[:, :2]).astype(np.int64) - size // 2
    corner = np.clip(corner, 0, [height - size, width - size])
    rows, columns = (corner[:, k, None] + np.arange(size) for k in (0, 1))
    alpha, shade = rasterise(shape, texture, pose, rows + 0.5, columns + 0.5)
    where = (np.arange(frames)[:, None, None], rows[:, :, None], columns[:, None, :])
    under = video[where]
    weight = alpha * shade
    for channel, level in enumerate(COLOURS[colour]):
        mixed = under[..., channel] * (1 - alpha) + level * weight
        under[..., channel] = np.floor(mixed + 0.5)
    video[where] = under
