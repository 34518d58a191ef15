"""The chest of a phantom: where its parts are, and the X-ray of it before any finding is drawn.

Coordinates are fractions of the image: x to the right, y down. `u` is the distance from the midline towards one side of
the patient; the patient's right is on the left of the image, as radiology shows it. Intensities run from 0 to 1.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from adamatch_ray.data.phantom_report import Habitus

Plane = NDArray[np.floating]
Point = tuple[float, float]

SIDES = {"right": -1.0, "left": 1.0}
_BOTTOM = {"low": 0.60, "normal": 0.70, "large": 0.80}  # y of the diaphragm's top for each lung volume
HEART_HEIGHT = 0.135  # half the height of the heart, fraction of the image
_EDGE = 0.02  # width of soft edges, fraction of the image


def ramp(distance: Plane, width: float = _EDGE) -> Plane:
    """0 outside, 1 inside, linear over `width` around a signed distance of 0."""
    return np.clip(distance / np.float32(width) + np.float32(0.5), 0, 1)


def smooth_noise(shape: tuple[int, int], cells: int, rng: np.random.Generator) -> Plane:
    """Noise [H, W] in [0, 1] with about `cells` blobs along each side."""
    coarse = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
    return np.asarray(coarse.resize(shape[::-1], Image.Resampling.BICUBIC), np.float32) / np.float32(255)


def rounded(line: list[Point]) -> list[Point]:
    """The polyline with its corners cut twice, so that tubes and leads bend as such things do."""
    for _ in range(2):
        cuts = [
            (a * near[0] + (1 - a) * far[0], a * near[1] + (1 - a) * far[1])
            for near, far in pairwise(line)
            for a in (0.75, 0.25)
        ]
        line = [line[0], *cuts[1:-1], line[-1]]
    return line


class Chest:
    """Jittered anatomy of one image: open coordinate grids, boundaries of its parts and the pixels drawn so far."""

    def __init__(self, height: int, width: int, habitus: Habitus, heart_width: float, rng: np.random.Generator) -> None:
        self.shape = height, width
        self.habitus = habitus
        self.x = ((np.arange(width, dtype=np.float32) + 0.5) / width)[None, :]
        self.y = ((np.arange(height, dtype=np.float32) + 0.5) / height)[:, None]
        self.middle = float(rng.uniform(0.485, 0.515))
        self.apex = float(rng.uniform(0.10, 0.14))
        self.reach = float(rng.uniform(0.385, 0.42))
        bottom = _BOTTOM[habitus.volume] + rng.uniform(-0.015, 0.015)
        self.bottom = {side: bottom - (0.10 if side == habitus.diaphragm else 0.0) for side in SIDES}
        self.bottom["right"] -= 0.01
        self.heart_width = heart_width
        heart_x = self.middle + 0.045 + 0.15 * (heart_width - 0.14)
        self.heart: Point = heart_x, max(self.bottom.values()) - 0.095
        self.bend = 0.055 * SIDES[habitus.spine] if habitus.spine else 0.0
        self.image = self._draw(rng)

    def u(self, side: str) -> Plane:
        """Distance [1, W] from the midline towards `side`, negative beyond it."""
        return (self.x - self.middle) * np.float32(SIDES[side])

    def at(self, side: str, u: float, y: float) -> Point:
        """The point at distance `u` from the midline towards `side`, at height `y`."""
        return self.middle + SIDES[side] * u, y

    def depth(self, side: str, zone: str) -> float:
        """Height y of the middle of a lung zone."""
        fraction = {"upper": 0.24, "mid": 0.53, "lower": 0.83}[zone]
        return self.apex + fraction * (self.bottom[side] - self.apex)

    def span(self, side: str, y: float) -> tuple[float, float]:
        """The lung's medial and lateral distance from the midline at height `y`."""
        at = np.array([[y]], np.float32)
        return float(self.medial(at, side)[0, 0]), float(self.lateral(at, side)[0, 0])

    def heart_edge(self, side: str, y: float) -> float:
        """How far the heart reaches from the midline towards `side` at height `y`; 0 where it is not."""
        height = 1 - ((y - self.heart[1]) / HEART_HEIGHT) ** 2
        return SIDES[side] * (self.heart[0] - self.middle) + self.heart_width * height**0.5 if height > 0 else 0.0

    def medial(self, y: Plane, side: str) -> Plane:
        """The lung's inner edge: distance from the midline at heights `y`."""
        t = np.clip((y - self.apex) / (self.bottom[side] - self.apex), 0, 1)
        return np.float32(0.07) + np.float32(0.06) * np.exp(-t * np.float32(12))

    def lateral(self, y: Plane, side: str) -> Plane:
        """The lung's outer edge: distance from the midline at heights `y`."""
        t = np.clip((y - self.apex) / (self.bottom[side] - self.apex), 0, 1)
        return np.float32(0.14) + np.float32(self.reach - 0.14) * np.sqrt(1 - (1 - t) ** np.float32(2.6))

    def dome(self, side: str) -> Plane:
        """The diaphragm's height [1, W], lowest at the costophrenic angle."""
        return np.float32(self.bottom[side]) + np.float32(1.9) * (self.u(side) - np.float32(0.18)) ** 2

    def lung(self, side: str, shrink: float = 0.0) -> Plane:
        """Mask [H, W] of one lung in [0, 1], its outer edge and apex moved in by `shrink`."""
        u, y = self.u(side), self.y
        here = np.flatnonzero(u[0] > 0)
        half = slice(int(here[0]), int(here[-1]) + 1)  # the other half of the image is 0
        across = np.minimum(u[:, half] - self.medial(y, side), self.lateral(y - shrink, side) - shrink - u[:, half])
        down = np.minimum(self.dome(side)[:, half] - y, y - (self.apex + shrink))
        mask = np.zeros(self.shape, np.float32)
        mask[:, half] = ramp(np.minimum(across, down))
        return mask

    def ellipse(self, centre: Point, radius_x: float, radius_y: float, edge: float = 0.15) -> Plane:
        """Mask [H, W] of an ellipse with a soft edge, radii in fractions of width and height."""
        across, down = (self.x[0] - centre[0]) / radius_x, (self.y[:, 0] - centre[1]) / radius_y
        window = np.ix_(np.abs(down) < 1 + edge, np.abs(across) < 1 + edge)  # the rest is 0, and most of the image
        mask = np.zeros(self.shape, np.float32)
        mask[window] = ramp(1 - np.sqrt(across[window[1]] ** 2 + down[window[0]] ** 2), edge)
        return mask

    def strokes(self, lines: list[list[Point]], thickness: float, blur: float = 0.6) -> Plane:
        """Mask [H, W] of polylines; `thickness` is a fraction of the long side, `blur` in pixels."""
        height, width = self.shape
        pen = max(1, round(thickness * max(self.shape)))
        pixels = [np.array(line) * (width, height) for line in lines]
        ends = np.concatenate(pixels)
        margin = pen + 2
        left, top = (np.clip(np.floor(ends.min(0)) - margin, 0, (width - 1, height - 1))).astype(int).tolist()
        right, low = (np.clip(np.ceil(ends.max(0)) + margin, (left + 1, top + 1), (width, height))).astype(int).tolist()
        sheet = Image.new("L", (right - left, low - top))  # no more of the image than the lines need: blurring is slow
        draw = ImageDraw.Draw(sheet)
        for line in pixels:
            draw.line((line - (left, top)).ravel().tolist(), fill=255, width=pen, joint="curve")
        mask = np.zeros(self.shape, np.float32)
        mask[top:low, left:right] = np.asarray(sheet.filter(ImageFilter.BoxBlur(blur)), np.float32) / np.float32(255)
        return mask

    def paint(self, mask: Plane, value: float | Plane) -> None:
        """Blend `value` into the image where `mask` is set."""
        self.image += mask * (np.float32(value) - self.image)

    def _draw(self, rng: np.random.Generator) -> Plane:
        """The X-ray of the normal chest: body, lungs, vessels, ribs, then what lies in the middle."""
        x, y = self.x, self.y
        waist = np.interp(y, [0, 0.05, 0.13, 0.3, 1], [0.13, 0.15, 0.44, 0.475, 0.46]).astype(np.float32)
        body = ramp(waist - np.abs(x - self.middle), 0.03)
        tissue = 0.50 + 0.10 * (y - 0.5) + 0.10 * smooth_noise(self.shape, 5, rng)
        self.image = body * tissue.astype(np.float32) + np.float32(0.03)
        lungs = self.lung("right") + self.lung("left")
        self._lung_fields(lungs, rng)
        self._middle(rng)
        return self.image

    def _lung_fields(self, lungs: Plane, rng: np.random.Generator) -> None:
        across = np.abs(self.x - self.middle)
        self.paint(lungs, 0.17 + 0.05 * smooth_noise(self.shape, 9, rng))
        turns = np.float32(2 * np.pi / rng.uniform(0.072, 0.084))
        down, out = turns * self.y + np.float32(rng.uniform(0, 6.28)), turns * (0.75 * across**2 - 0.05 * across)
        wave = np.cos(down) * np.cos(out) + np.sin(down) * np.sin(out)  # cos(down - out) from a row and a column
        ribs = np.clip(2 * wave - 1, 0, 1)
        self.image += np.float32(0.09) * ribs * (0.3 * ramp(np.float32(0.43) - across) + 0.7 * lungs)
        for side in SIDES:
            self.image += np.float32(0.16) * lungs * self.strokes(self._vessels(side, rng), 0.006, 0.9)

    def _vessels(self, side: str, rng: np.random.Generator) -> list[list[Point]]:
        """Wavy lines from the hilum into the lung."""
        angle = rng.uniform(-1.35, 1.35, (11, 1))
        steps = rng.uniform(0.14, 0.3, (11, 1)) * np.linspace(0, 1, 5)
        wave = np.cumsum(rng.normal(0, 0.008, steps.shape), axis=1)
        across = self.middle + SIDES[side] * (0.09 + steps * np.cos(angle))
        down = self.depth(side, "mid") - 0.02 + steps * np.sin(angle) + wave
        return np.stack([across, down], axis=-1).tolist()

    def _middle(self, rng: np.random.Generator) -> None:
        """Mediastinum with its aorta, spine, heart, clavicles, windpipe and stomach."""
        habitus, y = self.habitus, self.y
        top, bottom = self.apex, max(self.bottom.values())
        curve = np.float32(self.bend) * np.sin(np.clip((y - top) / (bottom - top), 0, 1) * np.float32(np.pi))
        spine = ramp(np.float32(0.035) - np.abs(self.x - self.middle - curve))
        self.paint(ramp(np.float32(0.075) - np.abs(self.x - self.middle)) * np.float32(0.75), 0.52)
        knob = 0.075 if habitus.tortuous_aorta else 0.035
        self.paint(self.ellipse(self.at("left", 0.055, top + 0.16), knob * 1.05, knob * 1.25), 0.56)
        self.paint(self.ellipse(self.heart, self.heart_width, HEART_HEIGHT, 0.12), 0.63)
        discs = np.clip(np.cos(y * np.float32(2 * np.pi / 0.058)) * 2 + 1.6, 0, 1).astype(np.float32)
        self.image += np.float32(0.11) * spine * (0.45 + 0.55 * discs)
        tilt = rng.uniform(-0.01, 0.03)
        collars = [
            [self.at(s, 0.05, top + 0.075), self.at(s, 0.2, top + 0.03), self.at(s, 0.37, top - tilt)] for s in SIDES
        ]
        for collar in collars:
            self.image += np.float32(0.17) * self.strokes([rounded(collar)], 0.02, 1.0)
        lean = 0.06 * SIDES[habitus.trachea] if habitus.trachea else 0.0
        airway = [(self.middle, 0.0), (self.middle + lean * 0.5, 0.09), (self.middle + lean, top + 0.16)]
        self.image -= np.float32(0.26) * self.strokes([rounded(airway)], 0.03, 1.2)
        if habitus.stomach_gas:
            gas = self.ellipse(self.at("left", 0.19, self.bottom["left"] + 0.115), 0.085, 0.05, 0.3)
            self.paint(gas, 0.14)
