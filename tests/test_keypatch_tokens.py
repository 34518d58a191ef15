"""Keypatches as image tokens: the right cells of the right image, in order, and nothing for uncovered cells."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adamatch_ray.engines.keypatch_tokens import FILE, KeypatchTokens, keypatch_tokens
from adamatch_ray.schema import KEYPATCH, TOKENS
from adamatch_ray.storage import Manifest, Root

GRID, CANVAS = 4, 64


def visual(*rows: tuple[str, int, int, tuple[float, float, float, float]]) -> pa.Table:
    """A visual codebook of (image, height, width, box) rows."""
    filled = [
        {
            "word": "effusion",
            "study_id": image,
            "dicom_id": image,
            "similarity": 0.5,
            "patch": 0,
            **dict(zip(("x0", "y0", "x1", "y1"), box, strict=True)),
            "height": height,
            "width": width,
            "feature": [1.0],
            "crop": b"",
        }
        for image, height, width, box in rows
    ]
    return pa.Table.from_pylist(filled, schema=KEYPATCH)


def shard(**tokens: list[int]) -> pa.Table:
    rows = [
        {"study_id": image, "dicom_id": image, "split": "train", "tokens": codes, "model": "m"}
        for image, codes in tokens.items()
    ]
    return pa.Table.from_pylist(rows, schema=TOKENS)


RAMP = list(range(100, 116))


def test_a_box_on_the_original_covers_the_cells_of_its_own_image() -> None:
    """Portrait: 200 x 100 pixels take the middle half of the canvas, so the left edge is a quarter in."""
    table = visual(("a", 200, 100, (0, 0, 100, 50)), ("b", 64, 64, (16, 16, 48, 32)))
    shards = [shard(b=[7] * 16), shard(a=RAMP, c=[0] * 16)]
    made = keypatch_tokens(table, shards, GRID, CANVAS)
    assert made["tokens"].to_pylist() == [[101, 102], [7, 7]]
    assert made["entry"].to_pylist() == [0, 1]


def test_an_uncovered_cell_gives_no_token_rather_than_code_0() -> None:
    table = visual(("a", 64, 64, (1, 1, 5, 5)), ("a", 64, 64, (0, 0, 9, 16)))
    assert keypatch_tokens(table, [shard(a=RAMP)], GRID, CANVAS)["tokens"].to_pylist() == [[], [100]]


def test_a_codebook_of_other_studies_is_refused() -> None:
    with pytest.raises(ValueError, match="image a of the visual codebook"):
        keypatch_tokens(visual(("a", 64, 64, (0, 0, 64, 64))), [shard(b=RAMP)], GRID, CANVAS)


def test_codes_follow_the_order_that_is_asked_for(tmp_path: Path) -> None:
    stage = Root(str(tmp_path)).stage("tokens")
    stage.commit(Manifest("tokens", "f", {}, {}))
    with pytest.raises(ValueError, match=r"tokens\.keypatches true"):
        KeypatchTokens.load(stage)
    table = visual(("a", 64, 64, (0, 0, 32, 16)), ("a", 64, 64, (48, 48, 64, 64)), ("a", 64, 64, (0, 0, 1, 1)))
    pq.write_table(keypatch_tokens(table, [shard(a=RAMP)], GRID, CANVAS), f"{stage.path}/{FILE}")
    tokens = KeypatchTokens.load(stage)
    assert tokens.codes([1, 2, 0]).tolist() == [115, 100, 101]
    assert tokens.codes([]).dtype == np.uint16
    with pytest.raises(ValueError, match="keypatch 3"):
        tokens.codes([0, 3])
