"""Where a word is seen, as one region: a soft point among the patches, or a place head's map (docs/method.md 1.6).

All constants were chosen on the validate split of phantoms. Places go in as unit coordinates of the canvas and come out
in pixels of the original image.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from adamatch_ray.geometry import CanvasImage

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Box = tuple[float, float, float, float]
"""xyxy in pixels of an original image."""

MASK = 64
"""Cells a side of a region's mask, whatever the image's size."""

SHARPNESS = 0.05
"""Cosine by which a patch may fall short of the best one and still count for 1/e of it."""
ROUNDS = 3
SPREAD = 2.0
"""Half the side of a soft point's box, in standard deviations of the places that it is the mean of."""

LEVEL = 0.5
"""Share of the highest probability from which a place belongs to the region."""
JOIN = 2
"""Places by which parts are widened before they count as one: wires and tubes are seen in pieces."""
STEPS = 6
"""Rounds of averaging with like neighbours."""
LIKENESS = 0.3
"""Difference in gray, in standard deviations of the neighbourhood, at which a neighbour counts for 1/e."""
_REACH = (1, 2, 4)
_OFFSETS = [(y * k, x * k) for k in _REACH for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x]


class Region(NamedTuple):
    """Where something is seen: its point (x, y), the box around it, and its shape, in pixels of the original image.

    mask: [MASK, MASK], whether each of as many equal cells of the image belongs to it; heat: the probability of each,
    where a map was read.
    """

    point: tuple[float, float]
    box: Box
    mask: Mask
    heat: Array | None = None

    def outline(self, height: int, width: int) -> list[list[tuple[float, float]]]:
        """The shape as closed polygons in pixels of the image, of `height` x `width`."""
        from skimage.measure import approximate_polygon, find_contours

        rings = find_contours(np.pad(self.mask, 1).astype(np.float32), 0.5)
        return [
            [
                (round((x - 0.5) * width / MASK, 1), round((y - 0.5) * height / MASK, 1))
                for y, x in approximate_polygon(ring, 0.4).tolist()
            ]
            for ring in rings
        ]


def shifts(grid: int) -> Array:
    """Unit offsets [16, 2] that fill the stride of a `grid` x `grid` of patches evenly: 1/8 and 3/8 to all sides."""
    steps = np.array([-3, -1, 1, 3]) / (8 * grid)
    return np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)


def soft_point(similarity_P: Array, boxes_P4: NDArray[np.floating], stride: float, image: CanvasImage) -> Region:
    """Mean place of the patches that resemble a word most, near the best of them.

    Boxes, and the stride within which patches count together, in unit coordinates of the canvas.
    """
    centre_P2 = (boxes_P4[:, :2] + boxes_P4[:, 2:]) / 2
    weight_P = np.exp((similarity_P - similarity_P.max()) / SHARPNESS)
    point, share_P = centre_P2[similarity_P.argmax()], weight_P
    for _ in range(ROUNDS):  # climbs to one place, where a mean over all would lie between two
        share_P = weight_P * (np.abs(centre_P2 - point).max(1) <= stride)
        share_P = share_P / share_P.sum()
        point = share_P @ centre_P2
    half = SPREAD * np.sqrt(share_P @ (centre_P2 - point) ** 2) + share_P @ (boxes_P4[:, 2:] - boxes_P4[:, :2]) / 2
    x, y, *_ = image.geometry.to_original(np.tile(point, 2))
    box = image.geometry.to_original(np.concatenate([point - half, point + half]))
    return Region((float(x), float(y)), _corners(box), _filled(box, image))


class MapReader:
    """Turns the maps of one image into regions."""

    def __init__(self, image: CanvasImage, side: int, steps: int = STEPS) -> None:
        """`side`: places a side of the maps."""
        self._image, self._side, self._steps = image, side, steps
        self._weight_KGG = _likeness(_resized(image.pixels, side))
        place, scale = image.geometry, side / image.geometry.canvas
        middle = np.arange(side) + 0.5
        down = (middle >= place.top * scale) & (middle <= (place.top + place.inner_height) * scale)
        across = (middle >= place.left * scale) & (middle <= (place.left + place.inner_width) * scale)
        self._shown_GG = down[:, None] & across

    def region(self, probability_GG: Array) -> Region:
        """The connected places around the highest one, which is its point, after averaging with like neighbours."""
        sharp = soft = np.where(self._shown_GG, probability_GG, 0.0)
        peak = np.unravel_index(sharp.argmax(), sharp.shape)
        for _ in range(self._steps):
            soft = (_neighbours(soft) * self._weight_KGG).sum(0)
        soft = np.where(self._shown_GG, soft, 0.0)
        mask = _component(soft)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        unit = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / self._side
        x, y, *_ = self._image.geometry.to_original(np.tile((np.array(peak[::-1]) + 0.5) / self._side, 2))
        box = _corners(self._image.geometry.to_original(unit))
        shape, heat = _on_original(mask, self._image), _on_original(soft, self._image)
        return Region((float(x), float(y)), box, shape, heat)


def _component(level_GG: Array) -> Mask:
    """The places of at least LEVEL of the maximum that hang together with it, or nearly do."""
    high_GG = level_GG >= LEVEL * level_GG.max()
    label_GG, _ = ndimage.label(
        ndimage.binary_dilation(high_GG, np.ones((2 * JOIN + 1, 2 * JOIN + 1))), np.ones((3, 3))
    )
    return np.asarray(high_GG & (label_GG == label_GG[np.unravel_index(level_GG.argmax(), level_GG.shape)]))


def _likeness(gray_GG: Array) -> Array:
    """Weights [K, G, G] of each place's neighbours, which sum to 1: the liker in gray, the heavier."""
    near_KGG = _neighbours(gray_GG)
    spread_GG = np.concatenate([near_KGG, gray_GG[None]]).std(0, ddof=1)
    weight_KGG = np.exp(-np.abs(near_KGG - gray_GG) / (LIKENESS * spread_GG + 1e-3))
    return np.asarray(weight_KGG / weight_KGG.sum(0))


def _neighbours(values_GG: Array) -> Array:
    reach, side = max(_REACH), values_GG.shape[0]
    wide = np.pad(values_GG, reach, mode="edge")
    return np.stack([wide[reach + y : reach + y + side, reach + x : reach + x + side] for y, x in _OFFSETS])


def _resized(pixels: NDArray[np.uint8], side: int) -> Array:
    """Gray in [0, 1], the mean of the pixels behind each place."""
    from skimage.transform import resize

    if pixels.shape[0] % side == 0:
        step = pixels.shape[0] // side
        return np.asarray(pixels.reshape(side, step, side, step).mean((1, 3)) / 255)
    return np.asarray(resize(pixels / 255, (side, side), anti_aliasing=True))


def _on_original(map_GG: Any, image: CanvasImage) -> Any:
    """A map over the canvas as one over the image."""
    place, middle = image.geometry, (np.arange(MASK) + 0.5) / MASK
    scale = map_GG.shape[0] / place.canvas
    rows = ((place.top + middle * place.inner_height) * scale).astype(int)
    columns = ((place.left + middle * place.inner_width) * scale).astype(int)
    return map_GG[np.ix_(rows, columns)]


def _filled(box: NDArray[np.floating], image: CanvasImage) -> Mask:
    """The cells whose middle a box holds, and the one in its own middle."""
    x, y = (np.arange(MASK) + 0.5) / MASK * image.width, (np.arange(MASK) + 0.5) / MASK * image.height
    mask = ((box[1] <= y) & (y <= box[3]))[:, None] & ((box[0] <= x) & (x <= box[2]))
    row, column = (box[1] + box[3]) / 2 / image.height, (box[0] + box[2]) / 2 / image.width
    mask[min(MASK - 1, int(row * MASK)), min(MASK - 1, int(column * MASK))] = True
    return np.asarray(mask)


def _corners(box: NDArray[np.floating]) -> Box:
    x0, y0, x1, y1 = (float(corner) for corner in box)
    return x0, y0, x1, y1
