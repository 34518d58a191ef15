"""The chest of a phantom: where its parts are, and the X-ray of it before any finding is drawn.

Coordinates are fractions of the image: x to the right, y down. `u` is the distance from the midline towards one side of
the patient; the patient's right is on the left of the image, as radiology shows it. Intensities run from 0 to 1.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from adamatch_ray.data.phantom_report import Habitus

Plane = NDArray[np.floating]
Point = tuple[float, float]

SIDES = {"right": -1.0, "left": 1.0}
_BOTTOM = {"low": 0.60, "normal": 0.70, "large": 0.80}  # y of the diaphragm's top for each lung volume
_EDGE = 0.02  # width of soft edges, fraction of the image


def ramp(distance: Plane, width: float = _EDGE) -> Plane:
    """0 outside, 1 inside, linear over `width` around a signed distance of 0."""
    return np.clip(distance / np.float32(width) + np.float32(0.5), 0, 1)


def smooth_noise(shape: tuple[int, int], cells: int, rng: np.random.Generator) -> Plane:
    """Noise [H, W] in [0, 1] with about `cells` blobs along each side."""
    coarse = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
    return np.asarray(coarse.resize(shape[::-1], Image.Resampling.BICUBIC), np.float32) / np.float32(255)


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
        across = np.minimum(u - self.medial(y, side), self.lateral(y - np.float32(shrink), side) - shrink - u)
        return ramp(np.minimum(across, np.minimum(self.dome(side) - y, y - np.float32(self.apex + shrink))))

    def ellipse(self, centre: Point, radius_x: float, radius_y: float, edge: float = 0.15) -> Plane:
        """Mask [H, W] of an ellipse with a soft edge, radii in fractions of width and height."""
        far = ((self.x - centre[0]) / radius_x) ** 2 + ((self.y - centre[1]) / radius_y) ** 2
        return ramp(1 - np.sqrt(far), edge)

    def strokes(self, lines: list[list[Point]], thickness: float, blur: float = 0.6) -> Plane:
        """Mask [H, W] of polylines; `thickness` is a fraction of the long side, `blur` in pixels."""
        height, width = self.shape
        sheet = Image.new("L", (width, height))
        draw = ImageDraw.Draw(sheet)
        for line in lines:
            points = [(px * width, py * height) for px, py in line]
            draw.line(points, fill=255, width=max(1, round(thickness * max(self.shape))), joint="curve")
        blurred = sheet.filter(ImageFilter.GaussianBlur(blur))
        return np.asarray(blurred, np.float32) / np.float32(255)

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
        phase = (self.y - 0.75 * across**2 + 0.05 * across) / np.float32(rng.uniform(0.072, 0.084))
        ribs = np.clip(np.cos(np.float32(2 * np.pi) * (phase + np.float32(rng.random()))) * 2 - 1, 0, 1)
        self.image += np.float32(0.09) * ribs * ramp(np.float32(0.43) - across) * (self.y > self.apex - 0.03)
        vessels = [self._vessel(side, rng) for side in SIDES for _ in range(11)]
        self.image += np.float32(0.16) * lungs * self.strokes(vessels, 0.006, 0.9)

    def _vessel(self, side: str, rng: np.random.Generator) -> list[Point]:
        """A wavy line from the hilum into the lung."""
        angle, length = rng.uniform(-1.35, 1.35), rng.uniform(0.14, 0.3)
        steps = np.linspace(0, length, 5)
        wave = np.cumsum(rng.normal(0, 0.008, 5))
        hilum = self.depth(side, "mid") - 0.02
        return [
            self.at(side, 0.09 + s * np.cos(angle), hilum + s * np.sin(angle) + w)
            for s, w in zip(steps, wave, strict=True)
        ]

    def _middle(self, rng: np.random.Generator) -> None:
        """Mediastinum with its aorta, spine, heart, clavicles, windpipe and stomach."""
        habitus, y = self.habitus, self.y
        top, bottom = self.apex, max(self.bottom.values())
        curve = np.float32(self.bend) * np.sin(np.clip((y - top) / (bottom - top), 0, 1) * np.float32(np.pi))
        spine = ramp(np.float32(0.035) - np.abs(self.x - self.middle - curve))
        self.paint(ramp(np.float32(0.075) - np.abs(self.x - self.middle)) * np.float32(0.75), 0.52)
        knob = 0.075 if habitus.tortuous_aorta else 0.035
        self.paint(self.ellipse(self.at("left", 0.055, top + 0.16), knob * 1.05, knob * 1.25), 0.56)
        self.paint(
            self.ellipse(self.heart, self.heart_width, 0.135, 0.12), 0.60 + 0.06 * smooth_noise(self.shape, 4, rng)
        )
        discs = np.clip(np.cos(y * np.float32(2 * np.pi / 0.058)) * 2 + 1.6, 0, 1).astype(np.float32)
        self.image += np.float32(0.11) * spine * (0.45 + 0.55 * discs)
        tilt = rng.uniform(-0.01, 0.03)
        collars = [
            [self.at(s, 0.05, top + 0.075), self.at(s, 0.2, top + 0.03), self.at(s, 0.37, top - tilt)] for s in SIDES
        ]
        self.image += np.float32(0.17) * self.strokes(collars, 0.02, 1.0)
        lean = 0.06 * SIDES[habitus.trachea] if habitus.trachea else 0.0
        airway = [[(self.middle, 0.0), (self.middle + lean * 0.5, 0.09), (self.middle + lean, top + 0.16)]]
        self.image -= np.float32(0.26) * self.strokes(airway, 0.03, 1.2)
        if habitus.stomach_gas:
            gas = self.ellipse(self.at("left", 0.19, self.bottom["left"] + 0.115), 0.085, 0.05, 0.3)
            self.paint(gas, 0.14)
