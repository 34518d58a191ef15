"""Keypatches as image tokens: the cells of its source image's grid that a keypatch covers (docs/method.md 2)."""

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from adamatch_ray.engines.image_tokens import tokens_of_box
from adamatch_ray.geometry import Geometry
from adamatch_ray.schema import KEYPATCH_TOKENS
from adamatch_ray.storage import Stage

FILE = "keypatches.parquet"


class KeypatchTokens:
    """The codes of each entry of a visual codebook, by its row."""

    def __init__(self, codes: Sequence[NDArray[np.uint16]]) -> None:
        self._codes = codes

    @classmethod
    def load(cls, tokens: Stage) -> "KeypatchTokens":
        """Those of a finished `tokens/` stage. Raises ValueError where it was made without keypatches."""
        tokens.require()
        try:
            table = tokens.read_table(FILE)
        except FileNotFoundError:
            raise ValueError(
                f"{tokens.uri} holds no keypatches: run jobs/cache_tokens.py --overwrite --tokens.keypatches true"
            ) from None
        return cls([np.asarray(row.values, dtype=np.uint16) for row in table["tokens"]])

    def __len__(self) -> int:
        return len(self._codes)

    def codes(self, entries: Sequence[int]) -> NDArray[np.uint16]:
        """The codes of entries one after another, in their order. Raises ValueError for an entry that is not there."""
        if entries and not 0 <= min(entries) <= max(entries) < len(self):
            raise ValueError(
                f"keypatch {max(entries)} is none of the {len(self)} in the token cache, which another visual "
                "codebook went into: run jobs/cache_tokens.py --overwrite"
            )
        return np.concatenate([np.zeros(0, np.uint16), *(self._codes[entry] for entry in entries)])


def keypatch_tokens(visual: pa.Table, shards: Iterable[pa.Table], grid: int, canvas: int) -> pa.Table:
    """Rows of KEYPATCH_TOKENS for a visual codebook, in its order.

    visual: KEYPATCH rows; shards: TOKENS rows of the train split, `grid` cells a side; `canvas`: side of the images
    they were read from, pixels. A box that covers no cell by half gives no token. Raises ValueError where a study of
    the codebook is in none of the shards.
    """
    wanted = pa.array(visual["dicom_id"].unique())
    found: dict[str, NDArray[np.uint16]] = {}
    for table in shards:
        rows = table.filter(pc.is_in(table["dicom_id"], wanted))
        found |= {image: np.asarray(row.values) for image, row in
                  zip(rows["dicom_id"].to_pylist(), rows["tokens"], strict=True)}  # fmt: skip
    if lacking := sorted(set(wanted.to_pylist()) - set(found)):
        raise ValueError(
            f"image {lacking[0]} of the visual codebook is not in the token cache: codebooks/ and tokens/ come from "
            "different studies; run jobs/build_codebooks.py --overwrite"
        )
    columns = [visual[name].to_pylist() for name in ("dicom_id", "height", "width", "x0", "y0", "x1", "y1")]
    tokens = []
    for image, height, width, *box in zip(*columns, strict=True):
        x0, y0, x1, y1 = Geometry(height, width, canvas).to_canvas(np.array(box))
        tokens.append(tokens_of_box(found[image], (x0, y0, x1, y1), grid))
    return pa.table([pa.array(range(len(tokens)), pa.int32()), tokens], schema=KEYPATCH_TOKENS)
