"""Elements of a DICOM as devices write them, whatever their VR says: empty, a decimal comma, bytes for a number.

None of this raises: what cannot be read is as if it were not there.
"""

import math
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword

from adamatch_ray.data.pixels import Values


def raw_value(dataset: Dataset, keyword: str) -> Any:
    """An element's value as it lies in the file (bytes), or as it was set; None where it is absent."""
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    # pydicom would convert an empty element by its VR, and raise where it does not know that.
    return dataset.get_item(tag, keep_deferred=True).value if tag in dataset else None


def numbers(dataset: Dataset, keyword: str) -> list[float]:
    """The numbers of an element in their places, NaN for one that is none; empty where there is nothing."""
    value = _value(dataset, keyword)
    if isinstance(value, bytes):
        binary = dictionary_VR(keyword).startswith(("US", "SS")) and value and len(value) % 2 == 0
        value = np.frombuffer(value, _order(dataset) + "u2").tolist() if binary else value.decode("latin-1")
    if isinstance(value, str):
        value = value.split("\\") if value.strip(" \0") else []
    if value is None:
        return []
    return [_number(part) for part in (value if _is_several(value) else [value])]


def number(dataset: Dataset, keyword: str) -> float | None:
    """The first number of an element."""
    return next((value for value in numbers(dataset, keyword) if not math.isnan(value)), None)


def integer(dataset: Dataset, keyword: str, default: int = 0) -> int:
    """The first number of an element without its fraction."""
    value = number(dataset, keyword)
    return default if value is None else int(value)


def text(dataset: Dataset, keyword: str) -> str:
    """An element's words, its several values with a space between them."""
    value = _value(dataset, keyword)
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    words = " ".join(str(part) for part in (value if _is_several(value) else [value]) if part is not None)
    with suppress(UnicodeError):
        words = words.encode("latin-1").decode("utf-8")  # many devices write UTF-8 and do not say so
    return " ".join(words.replace("\0", " ").split())


def items(dataset: Dataset, keyword: str) -> list[Dataset]:
    """The items of a sequence."""
    value = _value(dataset, keyword)
    return [item for item in value if isinstance(item, Dataset)] if _is_several(value) else []


class Table(NamedTuple):
    """A lookup table (PS3.3 C.11.1 and C.11.2)."""

    values: Values
    """[n]"""
    first: float
    """The input that the first value is for."""
    top: float
    """What counts as the largest output."""

    def look_up(self, inputs: Values, used: NDArray[np.bool_]) -> Values:
        """The outputs [n] for `inputs` [n]; those `used` tell which sign `first` was written with."""
        low, high = inputs[used].min(), inputs[used].max()

        def overlap(first: float) -> float:
            return min(high, first + len(self.values) - 1) - max(low, first)

        first = max((self.first, self.first - 65536, self.first + 65536), key=overlap)
        return self.values[np.clip(np.rint(inputs - first), 0, len(self.values) - 1).astype(np.int64)]


def table(dataset: Dataset, descriptor: str = "LUTDescriptor", data: str = "LUTData") -> Table | None:
    """The table that two elements describe; None where there is no data.

    pydicom reads as many values as the descriptor says and scales by the bits it says; both are often wrong (PS3.3
    lets CR devices write 16 for tables of 12 bits). The data decide: their number, and the bits that they need.
    """
    words = [int(value) if math.isfinite(value) else 0 for value in [*numbers(dataset, descriptor), 0.0, 0.0, 0.0]]
    length, first, bits = words[0] % 65536 or 65536, words[1], words[2]
    value = _value(dataset, data)
    if isinstance(value, bytes):
        narrow = len(value) - length in (0, 1) or (bits <= 8 and len(value) < 2 * length < 131072)
        usable = value if narrow else value[: len(value) // 2 * 2]
        entries = np.frombuffer(usable, np.uint8 if narrow else _order(dataset) + "u2").astype(np.float64)
        entries = entries[:length] if len(entries) == length + 1 else entries  # without the byte that evens it out
    else:
        entries = np.array([part for part in numbers(dataset, data) if math.isfinite(part)], dtype=np.float64) % 65536
    return Table(entries, float(first), largest(entries.max())) if entries.size else None


def largest(value: float) -> float:
    """The largest number of as many bits as `value` needs, eight at least."""
    return float(2 ** max(8, int(value).bit_length()) - 1)


def _value(dataset: Dataset, keyword: str) -> Any:
    """An element's value by its VR, or its bytes where these do not fit the VR."""
    try:
        return dataset[keyword].value if keyword in dataset else None
    except Exception:  # whatever pydicom raises for bytes that are not what their VR says
        return raw_value(dataset, keyword)


def _order(dataset: Dataset) -> str:
    return ">" if dataset.original_encoding[1] is False else "<"


def _is_several(value: Any) -> bool:
    return hasattr(value, "__iter__") and not isinstance(value, (str, bytes))


def _number(part: Any) -> float:
    try:
        value = float(part.strip(" \0").replace(",", ".") if isinstance(part, str) else part)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return value if math.isfinite(value) else math.nan
