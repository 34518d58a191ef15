"""Stored values of a DICOM to the gray that a viewer shows, in the order of the standard (PS3.3 C.11, PS3.4 N.2).

    bits → padding → modality LUT or rescale → VOI LUT or window → presentation → photometric interpretation → 8 bits

Every step is taken for each value that a pixel can have, not for each pixel: exact, and little memory. pydicom's own
functions for the same steps stop at an empty element, wrap where an input has a sign, and cut off or run past tables
whose descriptor is wrong, so they are not used; segmented palettes are.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels import apply_color_lut

from adamatch_ray.data.dicom_values import Table, integer, items, largest, number, numbers, raw_value, table, text
from adamatch_ray.data.pixels import BadImage, Pixels, Values, find_levels, robust_range, stretch

_LUMA = (0.299, 0.587, 0.114)
_LEAST_CONTRAST = 32
# A window or table that leaves the whole picture within fewer gray levels than this was meant for other values.
_MOST_PADDING = 0.95


@dataclass(frozen=True)
class PixelForm:
    """How a frame's values are stored; already made consistent."""

    rows: int
    columns: int
    samples: int
    allocated: int
    stored: int
    """Bits of a value; those above may hold anything, such as an overlay."""
    signed: bool
    photometric: str


def show(pixels: NDArray[Any], form: PixelForm, dataset: Dataset) -> Pixels:
    """Gray uint8 [H, W] of decoded pixels, integer [H, W] or [H, W, 3], brighter where the body absorbs more.

    Without a usable window or table the picture sets its own range (`pixels.robust_range`). Raises BadImage for a
    rescale slope of 0, a window width of 0 or less where there is no other, and a picture that is all padding.
    """
    if form.samples > 1:
        return _show_colour(pixels, form)
    levels = find_levels(pixels)
    values = _keep_stored_bits(levels.values, levels.counts > 0, form, dataset)
    padding = _padding(levels.values, values, levels.counts, form, dataset)
    counts = np.where(padding, 0, levels.counts)
    if not counts.any():
        raise BadImage("image has no pixels")
    if form.photometric.startswith("PALETTE"):
        gray = _palette(values, counts > 0, dataset)
    else:
        gray = _present(_voi(_modality(values, counts > 0, dataset), counts, dataset), form, dataset)
    gray[padding] = 0
    return gray[levels.where]


def _keep_stored_bits(raw: Values, used: NDArray[np.bool_], form: PixelForm, dataset: Dataset) -> Values:
    """Values without the bits that are not theirs; `HighBit`, which pydicom ignores, says where theirs end."""
    unsigned = raw.astype(np.int64) & ((1 << form.allocated) - 1)
    spare = integer(dataset, "HighBit", form.stored - 1) + 1 - form.stored
    if 0 < spare <= form.allocated - form.stored and (unsigned[used] >> form.stored).any():
        unsigned >>= spare
    unsigned &= (1 << form.stored) - 1
    return (unsigned - _below_zero(unsigned, form.stored, form.signed)).astype(np.float64)


def _below_zero(unsigned: Any, bits: int, signed: bool) -> Any:
    """What is to be taken from values of so many bits that have their sign bit set."""
    return ((unsigned >> (bits - 1)) << bits) * signed


def _padding(
    raw: Values, values: Values, counts: NDArray[np.int64], form: PixelForm, dataset: Dataset
) -> NDArray[np.bool_]:
    """Which values the detector never saw; they must not set the range, nor turn white when MONOCHROME1 is inverted.

    The element's VR may have the other sign, so it is read modulo the bits allocated. A value that the bits stored
    cannot hold is looked for in all bits. A range over half of all values, or of nearly all pixels, is a mistake.
    """
    padding = number(dataset, "PixelPaddingValue")
    if padding is None:
        return np.zeros(raw.shape, dtype=np.bool_)
    limit = number(dataset, "PixelPaddingRangeLimit")
    modulus = 1 << form.allocated
    ends = [int(end) % modulus for end in (padding, padding if limit is None else limit)]
    low, high = sorted(end - _below_zero(end, form.allocated, form.signed) for end in ends)
    value = ends[0] - _below_zero(ends[0], form.allocated, form.signed)
    least = -(1 << (form.stored - 1)) if form.signed else 0
    if not least <= value < least + (1 << form.stored):
        return np.equal(raw.astype(np.int64) % modulus, ends[0])
    within = (values >= low) & (values <= high)
    if high - low > (1 << form.stored) // 2 or counts[within].sum() > _MOST_PADDING * counts.sum():
        return np.equal(values, value)
    return within


def _modality(values: Values, used: NDArray[np.bool_], dataset: Dataset) -> Values:
    for item in items(dataset, "ModalityLUTSequence"):
        if (lut := table(item)) and _differ(mapped := lut.look_up(values, used), used):
            return mapped
    slope, intercept = number(dataset, "RescaleSlope"), number(dataset, "RescaleIntercept")
    if slope == 0:
        raise BadImage("DICOM with a rescale slope of 0")
    with np.errstate(over="ignore", invalid="ignore"):
        rescaled = values * (1.0 if slope is None else slope) + (intercept or 0.0)
        if not np.isfinite(np.ptp(rescaled) * 256.0) or (_differ(values, used) and not _differ(rescaled, used)):
            raise BadImage("DICOM with a rescale slope or intercept beyond all numbers")
    return rescaled


def _voi(values: Values, counts: NDArray[np.int64], dataset: Dataset) -> Pixels:
    """The first view (PS3.3 C.11.2) in which the picture can be seen, or its own range."""
    used = counts > 0
    for gray in _views(values, used, dataset):
        if not _differ(values, used) or int(np.ptp(gray[used].astype(np.int64))) >= _LEAST_CONTRAST:
            return gray
    widths = [width for width in numbers(dataset, "WindowWidth") if not np.isnan(width)]
    if widths and max(widths) <= 0:
        raise BadImage(f"DICOM with a window width of {widths[0]:g}")
    return stretch(values, *robust_range(values, counts))


def _views(values: Values, used: NDArray[np.bool_], dataset: Dataset) -> Iterator[Pixels]:
    for item in items(dataset, "VOILUTSequence"):
        if lut := table(item):
            yield stretch(lut.look_up(values, used), 0.0, lut.top)
    function = text(dataset, "VOILUTFunction").upper().replace(" ", "_")
    for centre, width in zip(numbers(dataset, "WindowCenter"), numbers(dataset, "WindowWidth"), strict=False):
        if np.isnan(centre) or not width > 0:
            continue
        if function == "SIGMOID":
            yield stretch(1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - centre) / width, -50.0, 50.0))), 0.0, 1.0)
        elif function == "LINEAR_EXACT" or width < 1:
            yield _linear(values, centre - width / 2, centre + width / 2)
        else:  # the standard's LINEAR: half a value off the exact window at either end (PS3.3 C.11.2.1.2)
            yield _linear(values, centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2)


def _linear(values: Values, low: float, high: float) -> Pixels:
    return stretch(values, low, high) if high > low else np.where(values > low, 255, 0).astype(np.uint8)


def _present(gray: Pixels, form: PixelForm, dataset: Dataset) -> Pixels:
    """INVERSE goes with MONOCHROME1 (PS3.3 C.8.11.3.1.2): the two say the same, and turn the picture over once."""
    for item in items(dataset, "PresentationLUTSequence"):
        if lut := table(item):
            places = np.rint(gray / 255.0 * (len(lut.values) - 1)).astype(np.int64)
            gray = stretch(lut.values[places], 0.0, lut.top)
            break
    inverse = form.photometric == "MONOCHROME1" or text(dataset, "PresentationLUTShape").upper() == "INVERSE"
    return np.uint8(255) - gray if inverse else gray


def _palette(values: Values, used: NDArray[np.bool_], dataset: Dataset) -> Pixels:
    tables = [_colour_table(dataset, colour) for colour in ("Red", "Green", "Blue")]
    if all(tables):
        top = max(lut.top for lut in tables if lut)
        shades = [lut.look_up(values, used) for lut in tables if lut]
    else:
        try:
            rgb = apply_color_lut(values.astype(np.int64), dataset)
        except Exception as error:  # there is no palette, or pydicom cannot follow its segments
            raise BadImage("DICOM without a readable palette") from error
        top, shades = float(np.iinfo(rgb.dtype).max), [rgb[..., channel] for channel in range(3)]
    return stretch(np.array(_LUMA) @ np.array(shades), 0.0, top)


def _colour_table(dataset: Dataset, colour: str) -> Table | None:
    name = f"{colour}PaletteColorLookupTable"
    return table(dataset, f"{name}Descriptor", f"{name}Data") if raw_value(dataset, f"{name}Data") else None


def _show_colour(pixels: NDArray[Any], form: PixelForm) -> Pixels:
    """Luminance, which is what the Y of YBR already is; deep colour by the bits that its values need."""
    mask = (1 << form.stored) - 1
    luminance = np.zeros(pixels.shape[:2], dtype=np.float32)
    brightest = 0
    for channel, share in enumerate((1.0,) if form.photometric.startswith("YBR") else _LUMA):
        plane = pixels[..., channel] & mask
        brightest = max(brightest, int(plane.max()))
        luminance += np.float32(share) * plane
    return stretch(luminance, 0.0, min(largest(brightest), float(max(mask, 255))))


def _differ(values: Values, used: NDArray[np.bool_]) -> bool:
    return bool(np.ptp(values[used]) > 0)
