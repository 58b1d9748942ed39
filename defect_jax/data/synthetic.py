"""A dataset drawn from a seed: surfaces, defects on them and their exact masks.

Nothing to download and nothing to read, so the quickstart runs on it. Lengths in
the drawing functions are fractions of the image's shorter side, so that another size shows the
same kind of scene with more or fewer pixels.
"""

import functools
import hashlib
import math
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import ml_collections
import numpy as np
from scipy import ndimage

from defect_jax import errors
from defect_jax.data import builder
from defect_jax.data.examples import Examples

# Raise it when the same arguments are to draw other pictures: prepared ones are kept by it.
_VERSION = 1


class Scene(NamedTuple):
    """A flawless product before the camera; all arrays are float32 unless noted.

    Attributes:
        image: [H, W, 3] in [0, 1], the product under even light.
        under: [H, W, 3] in [0, 1], what shows where a piece of the product is gone.
        region: [H, W] in [0, 1], 1 on the product, 0 on the background.
        parts: [H, W] int32, the removable part each pixel belongs to; 0 belongs to none.
    """

    image: np.ndarray
    under: np.ndarray
    region: np.ndarray
    parts: np.ndarray


def _placed(rng: np.random.Generator, size: tuple[int, int], degrees: float, shift: float):
    """Returns y, x [H, W] from the image's centre, turned and shifted within the limits."""
    scale = min(size)
    y, x = np.ogrid[: size[0], : size[1]]
    y, x = [(v - (v.size - 1) / 2) / scale + rng.uniform(-shift, shift) for v in (y, x)]
    angle = np.deg2rad(rng.uniform(-degrees, degrees))
    turned = (np.cos(angle) * y - np.sin(angle) * x, np.sin(angle) * y + np.cos(angle) * x)
    return [v.astype(np.float32) for v in turned]


def _noise(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Returns smooth noise [H, W] in [-1, 1] with one random value per unit of y and x [H, W]."""
    table = rng.uniform(-1, 1, (256, 256)).astype(np.float32)
    row, column = np.floor(y), np.floor(x)
    a, b = _smooth(y - row), _smooth(x - column)
    row, column = row.astype(np.int32) & 255, column.astype(np.int32) & 255
    below, right = (row + 1) & 255, (column + 1) & 255
    top = table[row, column] * (1 - b) + table[row, right] * b
    return top * (1 - a) + (table[below, column] * (1 - b) + table[below, right] * b) * a


def _smooth(t: np.ndarray) -> np.ndarray:
    """Returns the cubic step from 0 at t <= 0 to 1 at t >= 1."""
    t = np.clip(t, 0, 1)
    return t * t * (3 - 2 * t)


def _inside(distance: np.ndarray, pixel: float) -> np.ndarray:
    """Returns coverage in [0, 1], antialiased over `pixel`, of where a signed distance is < 0."""
    return np.clip(0.5 - distance / pixel, 0, 1)


def _tint(rng: np.random.Generator, *colour: float) -> np.ndarray:
    """Returns the RGB colour [3] as it comes out in one batch of the product."""
    return np.asarray(colour, np.float32) * rng.uniform(0.96, 1.04, 3).astype(np.float32)


def _whole(image: np.ndarray, under: np.ndarray, parts: np.ndarray | None = None) -> Scene:
    """Returns the scene of a texture that fills the image."""
    shape = image.shape[:2]
    parts = np.zeros(shape, np.int32) if parts is None else parts.astype(np.int32)
    return Scene(image, under, np.ones(shape, np.float32), parts)


def _fabric(rng: np.random.Generator, size: tuple[int, int]) -> Scene:
    """Plain weave of blue warp and pale weft; the parts are lengths of warp thread."""
    y, x = _placed(rng, size, degrees=4, shift=0.5)
    u = 17 * x + 0.25 * _noise(rng, 5 * y, 5 * x) + 64
    v = 17 * y + 0.25 * _noise(rng, 5 * y, 5 * x) + 64
    warp, weft = np.floor(u).astype(np.int32), np.floor(v).astype(np.int32)
    round_u, round_v = np.cos(np.pi * (u - warp - 0.5)), np.cos(np.pi * (v - weft - 0.5))
    twist = 1 + 0.07 * np.sin(2 * np.pi * (2 * u + v)) + 0.07 * _noise(rng, 4 * v, 4 * u)
    uneven = rng.uniform(0.9, 1.1, (2, 256)).astype(np.float32)
    warp_shade = uneven[0][warp & 255] * twist * (0.3 + 0.7 * round_u**0.7) * (0.6 + 0.4 * round_v)
    weft_shade = uneven[1][weft & 255] * twist * (0.3 + 0.7 * round_v**0.7) * (0.6 + 0.4 * round_u)
    blue, pale = _tint(rng, 0.42, 0.52, 0.66), _tint(rng, 0.78, 0.76, 0.70)
    on_top = ((warp + weft) & 1)[..., None] == 0
    image = np.where(on_top, warp_shade[..., None] * blue, weft_shade[..., None] * pale)
    gap = (0.12 + 0.45 * round_v * np.abs(u - warp - 0.5) * 2)[..., None] * pale
    return _whole(image, gap, 1 + (warp & 255) * 64 + (weft + rng.integers(7)) // 7)


def _metal(rng: np.random.Generator, size: tuple[int, int]) -> Scene:
    """Brushed steel: streaks along x and a broad reflection across them."""
    y, x = _placed(rng, size, degrees=3, shift=0.5)
    streaks = sum(
        weight * _noise(rng, across * y, along * x)
        for weight, across, along in ((0.05, 24, 0.6), (0.06, 64, 1.5), (0.07, 120, 4.0))
    )
    gloss = 0.09 * np.exp(-(((y - rng.uniform(-0.3, 0.3)) / 0.25) ** 2))
    grey = 0.52 + gloss + streaks + 0.03 * _noise(rng, 2 * y, 2 * x)
    return _whole(grey[..., None] * _tint(rng, 0.98, 1.0, 1.03), np.zeros_like(grey)[..., None])


def _wood(rng: np.random.Generator, size: tuple[int, int]) -> Scene:
    """Planed wood: wavy growth rings seen lengthwise, and pores."""
    y, x = _placed(rng, size, degrees=4, shift=0.5)
    bend = x + 0.10 * _noise(rng, 1.3 * y, 1.6 * x) + 0.012 * _noise(rng, 3 * y, 12 * x)
    ring = 9 * bend + 1.2 * _noise(rng, 0.2 * y, 3 * bend)
    ring = ring - np.floor(ring)
    late = ring**2 * _smooth((1 - ring) / 0.15)
    pores = _smooth((_noise(rng, 9 * y, 110 * bend) - 0.25) / 0.6)
    fibre = 0.05 * _noise(rng, 14 * y, 80 * bend) + 0.06 * _noise(rng, 1.5 * y, 5 * bend)
    light, dark = _tint(rng, 0.80, 0.61, 0.42), _tint(rng, 0.56, 0.37, 0.22)
    image = light + (0.85 * late + 0.3 * pores)[..., None] * (dark - light)
    return _whole(image * (1 + fibre)[..., None], (0.10 + 0.35 * fibre)[..., None] * light)


def _leather(rng: np.random.Generator, size: tuple[int, int]) -> Scene:
    """Pebbled leather: cells around jittered points (Worley noise), lit from one side."""
    y, x = _placed(rng, size, degrees=45, shift=0.5)
    u = 17 * x + 0.5 * _noise(rng, 9 * y, 9 * x) + 128
    v = 17 * y + 0.5 * _noise(rng, 9 * y, 9 * x) + 128
    row, column = np.floor(v).astype(np.int32), np.floor(u).astype(np.int32)
    points = rng.uniform(0.05, 0.95, (2, 256, 256)).astype(np.float32)
    first = np.full(size, 9, np.float32)
    second = first.copy()
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            r, c = row + i, column + j
            at = (r & 255, c & 255)
            distance = np.hypot(v - r - points[0][at], u - c - points[1][at])
            second = np.minimum(second, np.maximum(first, distance))
            first = np.minimum(first, distance)
    height = _smooth((second - first) / 0.45) + 0.25 * _noise(rng, 60 * y, 60 * x)
    down, right = np.gradient(height * (min(size) / 128))
    grey = 0.74 + 0.26 * height - 0.22 * (down + right) + 0.06 * _noise(rng, 3 * y, 3 * x)
    brown = _tint(rng, 0.58, 0.37, 0.25)
    return _whole(grey[..., None] * brown, (0.16 + 0.05 * height)[..., None] * brown)


def _tiles(rng: np.random.Generator, size: tuple[int, int]) -> Scene:
    """Glazed square tiles in grout; each tile is a part."""
    y, x = _placed(rng, size, degrees=2, shift=0.1)
    u, v = 5 * x + 32, 5 * y + 32
    row, column = np.floor(v).astype(np.int32), np.floor(u).astype(np.int32)
    a, b = v - row - 0.5, u - column - 0.5
    corner = np.hypot(np.maximum(np.abs(a) - 0.36, 0), np.maximum(np.abs(b) - 0.36, 0))
    distance = corner - 0.09 + 0.012 * _noise(rng, 6 * v, 6 * u)
    tile = _inside(distance, 7 / min(size))[..., None]
    tone = rng.uniform(0.93, 1.07, (64, 64)).astype(np.float32)[row & 63, column & 63]
    glaze = tone + 0.05 * _noise(rng, 2.2 * v, 2.2 * u) + 0.03 * _noise(rng, 11 * v, 11 * u)
    glaze += 0.16 * _smooth(1 + distance / 0.06) * np.clip(-(a + b) / 0.45, -1, 1)
    grain = 0.10 * _noise(rng, 24 * v, 24 * u) + 0.06 * _noise(rng, 4 * v, 4 * u)
    grout = (1 + grain)[..., None] * _tint(rng, 0.36, 0.34, 0.32)
    image = glaze[..., None] * _tint(rng, 0.60, 0.70, 0.66) * tile + grout * (1 - tile)
    mortar = grout * (1.15 + 0.35 * np.sin(2 * np.pi * 5 * v))[..., None]
    return _whole(image, mortar, (1 + row * 64 + column) * (tile[..., 0] > 0))


def _gear(rng: np.random.Generator, size: tuple[int, int]) -> Scene:
    """A turned steel gear on a matt conveyor belt; each tooth is a part."""
    teeth, holes = 18, 6
    y, x = _placed(rng, size, degrees=0.8, shift=0.003)
    pixel, radius, angle = 1.2 / min(size), np.hypot(y, x), np.arctan2(y, x)
    wave = np.cos(teeth * angle)
    rim = 0.375 + 0.035 * np.clip(2.2 * wave, -1, 1)
    step = 2 * np.pi / holes
    nearest = step * np.round(angle / step)
    bolt = np.hypot(y - 0.225 * np.sin(nearest), x - 0.225 * np.cos(nearest)) - 0.034
    slot = np.maximum(np.abs(x) - 0.03, np.abs(y + 0.09) - 0.05)
    hollow = np.minimum(np.minimum(radius - 0.105, slot), bolt)
    outside = np.maximum(radius - rim, -hollow)
    part = _inside(outside, pixel)
    turned = 0.012 * _noise(rng, 90 * radius, 0 * angle) + 0.02 * np.sin(2 * np.pi * 45 * radius)
    turned += 0.012 * _noise(rng, 60 * radius, 3 * np.cos(angle))
    gloss = 0.10 * np.cos(2 * (angle - rng.uniform(0.5, 0.9)))
    hub = 0.07 * np.where(np.abs(radius - 0.225) < 0.065, -1, 1)
    bevel = 0.22 * _smooth(1 + outside / 0.014) * np.clip(-(y + x) / (radius + 0.01), -1, 1)
    grey = (0.60 + turned + gloss + hub + bevel)[..., None] * _tint(rng, 0.98, 1.0, 1.03)
    belt = 0.25 + 0.012 * _noise(rng, 50 * y, 50 * x) + 0.02 * _noise(rng, 5 * y, 5 * x)
    reach = 0.02 * min(size)
    shadow = ndimage.gaussian_filter(ndimage.shift(part, (reach, reach), order=1), 0.6 * reach)
    under = (belt * (1 - 0.55 * shadow))[..., None] * _tint(rng, 0.92, 1.0, 0.95)
    tooth = 1 + (np.round(angle * teeth / (2 * np.pi)).astype(np.int32) % teeth)
    tooth *= (radius > 0.335) & (outside < pixel)
    cover = part[..., None]
    return Scene(grey * cover + under * (1 - cover), under, part, tooth)


def _anchor(rng: np.random.Generator, scene: Scene) -> tuple[float, float]:
    """Returns row and column of a pixel on the product, away from the image's border."""
    margin = [max(1, round(0.12 * n)) for n in scene.region.shape]
    inner = scene.region[margin[0] : -margin[0], margin[1] : -margin[1]] > 0.9
    rows, columns = np.nonzero(inner)
    chosen = rng.integers(len(rows))
    return rows[chosen] + margin[0], columns[chosen] + margin[1]


def _offsets(rng: np.random.Generator, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distances [H, W] along and across a random direction from a random anchor."""
    row, column = _anchor(rng, scene)
    height, width = scene.region.shape
    y, x = np.ogrid[:height, :width]
    y, x = [(v / min(height, width)).astype(np.float32) for v in (y - row, x - column)]
    angle = rng.uniform(0, 2 * np.pi)
    return np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x


def _blob(rng: np.random.Generator, scene: Scene, radius: float, edge: float) -> np.ndarray:
    """Returns cover [H, W] in [0, 1] of an irregular blob with a soft edge `edge` wide."""
    along, across = _offsets(rng, scene)
    stretch = rng.uniform(1, 1.5)
    angle = np.arctan2(across, along)
    outline = sum(
        rng.uniform(0, 0.2 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 5)
    )
    edge = max(edge, 1.0 / min(scene.region.shape))
    distance = np.hypot(along / stretch, across * stretch) - radius * (1 + outline)
    return _smooth(0.5 - distance / edge) * scene.region


def _blend(image: np.ndarray, colour: np.ndarray | np.floating, cover: np.ndarray) -> np.ndarray:
    return image + cover[..., None] * (colour - image)


def _contrary(rng: np.random.Generator, image: np.ndarray, cover: np.ndarray) -> float:
    """Returns a grey value that stands out from what `cover` hides, darker or lighter."""
    grey = float((image.mean(-1) * cover).sum() / max(cover.sum(), 1e-6))
    dark = rng.random() < (0.75 if grey > 0.45 else 0.25 if grey > 0.3 else 0.0)
    return rng.uniform(0.05, 0.15) if dark else rng.uniform(0.85, 0.98)


def _scratch(rng: np.random.Generator, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """A fine curved groove with tapering ends and a lit burr along one side."""
    along, across = _offsets(rng, scene)
    half = rng.uniform(0.08, 0.30)
    curve = rng.uniform(-0.9, 0.9) * along**2
    curve += 0.004 * np.sin(rng.uniform(20, 50) * along + rng.uniform(0, 2 * np.pi))
    taper = np.clip(1 - (along / half) ** 2, 0, 1) ** 0.5
    pixel = 1 / min(scene.region.shape)
    width = max(rng.uniform(0.004, 0.011), 0.7 * pixel)
    distance = across - curve
    groove = _inside(np.abs(distance) - width * taper, pixel) * (taper > 0)
    burr = _inside(np.abs(distance - 1.5 * width) - 0.6 * width * taper, pixel) * (taper > 0)
    groove, burr = groove * scene.region, burr * scene.region
    strength = rng.uniform(0.45, 0.95)
    grey = _contrary(rng, scene.image, groove)
    image = _blend(scene.image, np.float32(1 - grey), 0.3 * strength * burr * (1 - groove))
    return _blend(image, np.float32(grey), strength * groove), np.maximum(groove, burr)


def _spot(rng: np.random.Generator, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """One to three small marks, of paint or corrosion."""
    image, cover = scene.image, np.zeros(scene.region.shape, np.float32)
    for _ in range(rng.integers(1, 4)):
        blob = _blob(rng, scene, rng.uniform(0.016, 0.045), edge=0.012)
        colour = _contrary(rng, image, blob) * _tint(rng, 1.05, 1.0, 0.95)
        image = _blend(image, colour, rng.uniform(0.4, 0.95) * blob)
        cover = np.maximum(cover, blob)
    return image, cover


def _stain(rng: np.random.Generator, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """A dried liquid: the surface shows through, darker and yellower, most at the rim."""
    cover = _blob(rng, scene, rng.uniform(0.07, 0.17), edge=0.03)
    y, x = _placed(rng, cover.shape, degrees=45, shift=0.5)
    rim = 4 * cover * (1 - cover)
    depth = rng.uniform(0.45, 0.8) * (0.85 + 0.35 * _noise(rng, 9 * y, 9 * x) + 0.3 * rim)
    absorbed = rng.uniform((0.45, 0.65, 0.85), (0.7, 0.9, 1.0)).astype(np.float32)
    return scene.image * (1 - (cover * depth)[..., None] * absorbed), cover


def _dent(rng: np.random.Generator, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """A hollow: one flank lit, the other in shade, the texture pulled towards its middle."""
    row, column = _anchor(rng, scene)
    height, width = scene.region.shape
    scale = min(height, width)
    radius = rng.uniform(0.05, 0.13) * scale
    stretch = rng.uniform(0.8, 1.25)
    y, x = np.ogrid[:height, :width]
    y, x = [v.astype(np.float32) for v in ((y - row) * stretch, (x - column) / stretch)]
    bowl = np.clip(1 - (y**2 + x**2) / radius**2, 0, 1)
    light = rng.uniform(0, 2 * np.pi)
    slope = 2.6 * bowl * (np.sin(light) * y + np.cos(light) * x) / radius
    pull = rng.uniform(0.2, 0.4) * bowl**2
    where = np.broadcast_arrays(np.arange(height)[:, None] + pull * y, np.arange(width) + pull * x)
    moved = np.stack(
        [ndimage.map_coordinates(scene.image[..., c], where, order=1) for c in range(3)], -1
    )
    depth = rng.uniform(0.55, 0.9)
    shaded = moved * (1 + depth * slope - 0.3 * depth * bowl**2)[..., None]
    cover = _smooth(bowl / 0.2) * scene.region
    return _blend(scene.image, shaded, cover), cover


def _missing(rng: np.random.Generator, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """A piece is gone: part of a thread, tile or tooth, or a hole where there are no parts."""
    if not scene.parts.any():
        cover = _blob(rng, scene, rng.uniform(0.03, 0.08), edge=0.01)
        return _blend(scene.image, scene.under, cover), cover
    ids, counts = np.unique(scene.parts[scene.parts > 0], return_counts=True)
    chosen = scene.parts == rng.choice(ids[counts >= np.median(counts)])
    rows, columns = np.nonzero(chosen)
    angle = rng.uniform(0, 2 * np.pi)
    height, width = scene.region.shape
    y, x = np.ogrid[:height, :width]
    reach = np.sin(angle) * y + np.cos(angle) * x
    reach = reach + 0.008 * min(height, width) * np.sin(0.6 * (x - y) + angle)
    cut = np.quantile(reach[rows, columns], rng.uniform(0.55, 1.0))
    cover = (chosen & (reach <= cut)).astype(np.float32)
    cover = ndimage.gaussian_filter(cover, 0.004 * min(height, width))
    return _blend(scene.image, scene.under, cover), cover


SURFACES = {
    "fabric": _fabric,
    "gear": _gear,
    "leather": _leather,
    "metal": _metal,
    "tiles": _tiles,
    "wood": _wood,
}

DEFECTS = {
    "dent": _dent,
    "missing": _missing,
    "scratch": _scratch,
    "spot": _spot,
    "stain": _stain,
}

# What can befall each surface: cloth does not dent, and tiles break rather than bend.
DEFECTS_OF = {
    "fabric": ("missing", "scratch", "spot", "stain"),
    "gear": ("dent", "missing", "scratch", "spot", "stain"),
    "leather": ("dent", "missing", "scratch", "spot", "stain"),
    "metal": ("dent", "scratch", "spot", "stain"),
    "tiles": ("missing", "scratch", "spot", "stain"),
    "wood": ("dent", "missing", "scratch", "spot", "stain"),
}


def _photograph(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Returns uint8 [H, W, 3]: uneven light, exposure and the sensor's noise on [0, 1] values."""
    y, x = _placed(rng, image.shape[:2], degrees=180, shift=0.1)
    light = rng.uniform(0.96, 1.04) + rng.uniform(-0.12, 0.12) * y - 0.10 * (y**2 + x**2)
    image = np.clip(image * light[..., None], 0, 1)
    noise = rng.standard_normal(image.shape, np.float32) * (0.004 + 0.006 * np.sqrt(image))
    return np.clip(255 * (image + noise) + 0.5, 0, 255).astype(np.uint8)


def _rng(seed: int, index: int, *names: str) -> np.random.Generator:
    return np.random.default_rng([seed, index, *(zlib.crc32(name.encode()) for name in names)])


def draw(
    seed: int, index: int, surface: str, defect: str, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Draws one photograph; the result is a function of the arguments alone.

    Images of the same seed, index, surface and size show the same product in the same light,
    whatever the defect.

    Args:
        seed: of the dataset, not negative.
        index: of the image, not negative.
        surface: a key of `SURFACES`.
        defect: 'good' or one of `DEFECTS_OF[surface]`.
        size: height H and width W in pixels, 16 or more.

    Returns:
        The image, uint8 [H, W, 3], and the mask of the defect, uint8 [H, W], 0 or 1; a good
        image has an empty mask.

    Raises:
        UserError: no such surface, or no such defect on it.
    """
    scene = errors.lookup(SURFACES, surface, "synthetic category")(
        _rng(seed, index, surface, "surface"), size
    )
    image = ndimage.gaussian_filter(np.clip(scene.image, 0, 1), (0.5, 0.5, 0))
    cover = np.zeros(size, np.float32)
    if defect != "good":
        possible = {name: DEFECTS[name] for name in DEFECTS_OF[surface]}
        add = errors.lookup(possible, defect, f"defect of {surface}")
        image, cover = add(_rng(seed, index, surface, defect), scene._replace(image=image))
    photograph = _photograph(_rng(seed, index, surface, "camera"), image)
    return photograph, (cover > 0.1).astype(np.uint8)


def load(data: ml_collections.ConfigDict, split: str) -> Examples:
    """The examples of one surface.

    Args:
        data: `config.data`; reads `category` (a key of `SURFACES`), `image_size`, `cache_dir` and
            of `synthetic`: `seed`, `num_train`, `num_test_good` and `num_test_per_defect`.
        split: 'train' (good images only) or 'test'.

    Raises:
        UserError: no such surface, a split that would be empty, or a negative seed.
    """
    fields = data.synthetic
    errors.require_within(fields.seed, 0, math.inf, "data.synthetic.seed")
    surface, size = data.category, tuple(data.image_size)
    errors.require(surface, SURFACES, "synthetic category")
    tests = {"good": fields.num_test_good} | dict.fromkeys(
        DEFECTS_OF[surface], fields.num_test_per_defect
    )
    if fields.num_train < 1 or sum(tests.values()) < 1:
        raise errors.UserError(
            "data.synthetic asks for no training or no test images: ask for some"
        )
    splits = {"train": {"good": fields.num_train}, "test": tests}
    options = repr((_VERSION, surface, size, splits, fields.seed))
    prepared = builder.prepare(
        {name: functools.partial(_rows, name, splits[name], data) for name in splits},
        f"synthetic/{surface}",
        hashlib.sha256(options.encode()).hexdigest()[:16],
        data.cache_dir,
        fields.num_train + sum(tests.values()),
    )
    return builder.read(prepared, split)


def _rows(split: str, counts: dict[str, int], data: ml_collections.ConfigDict) -> Iterator[dict]:
    # Training and test images never share an index, so they never show the same product.
    index = 0 if split == "train" else data.synthetic.num_train
    for defect, count in counts.items():
        for number in range(count):
            image, mask = draw(
                data.synthetic.seed, index, data.category, defect, tuple(data.image_size)
            )
            index += 1
            yield {
                "image": builder.encode_png(image),
                "mask": builder.encode_png(mask) if defect != "good" else b"",
                "label": int(defect != "good"),
                "defect_type": defect,
                "filename": f"{split}/{defect}/{number:03}.png",
            }
