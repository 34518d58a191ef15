"""Small things that several tables share: names of findings, and rows as CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamatch_ray.schema import CHEXPERT_LABELS


def finding_names(mask_L: NDArray[np.bool_]) -> tuple[str, ...]:
    """Names of the labels that are set in a mask [14]."""
    return tuple(CHEXPERT_LABELS[number] for number in np.flatnonzero(mask_L))


def csv_table(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows with the same columns as CSV with a header; a tuple in a cell is joined by semicolons."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(rows[0] if rows else ())
    for row in rows:
        writer.writerow([";".join(value) if isinstance(value, tuple) else value for value in row.values()])
    return stream.getvalue().encode()
