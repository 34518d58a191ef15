"""Codebooks: ranking that does not depend on how the work was split, files that give back what was saved."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from adamatch_ray.codebooks import GROUPS, Entity, TextualCodebook, VisualCodebook, rank_entities, rank_keypatches
from adamatch_ray.schema import KEYPATCH
from adamatch_ray.storage import Manifest, Root, Stage

STRUCTURE, DESCRIPTION, DISEASE, SIGN = GROUPS


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    stage = Root(str(tmp_path)).stage("codebooks")
    stage.commit(Manifest("codebooks", "f", {}, {}))
    return stage


def keypatches(seed: int, rows: int, words: int = 4, dim: int = 3) -> pa.Table:
    """Rows with many equal similarities, words and studies."""
    rng = np.random.default_rng(seed)

    def draw() -> Iterator[dict[str, Any]]:
        for row in range(rows):
            corners = {name: float(rng.integers(64)) for name in ("x0", "y0", "x1", "y1")}
            yield {
                "word": f"w{rng.integers(words)}",
                "study_id": f"s{rng.integers(3)}",
                "dicom_id": f"d{seed}-{row}",
                "similarity": float(rng.integers(6)) / 8,
                "patch": int(rng.integers(16)),
                **corners,
                "height": 64,
                "width": 64,
                "feature": rng.normal(size=dim).tolist(),
                "crop": bytes([row % 256]),
            }

    return pa.Table.from_pylist(list(draw()), schema=KEYPATCH)


def test_entities_are_ranked_by_count_then_text_within_their_group() -> None:
    counts = {
        ("nodule", SIGN): 2,
        ("opacity", SIGN): 5,
        ("cyst", SIGN): 2,
        ("heart", STRUCTURE): 9,
        ("lung", STRUCTURE): 9,
    }
    assert rank_entities(counts, per_group=2) == (
        Entity("heart", STRUCTURE, 9),
        Entity("lung", STRUCTURE, 9),
        Entity("opacity", SIGN, 5),
        Entity("cyst", SIGN, 2),
    )
    assert [e.text for e in rank_entities(counts, per_group=9, min_count=3)] == ["heart", "lung", "opacity"]


def test_an_entity_of_several_groups_belongs_to_its_most_frequent_one() -> None:
    counts = {("effusion", SIGN): 7, ("effusion", DISEASE): 3, ("mass", SIGN): 4, ("mass", DISEASE): 4}
    expected = (Entity("mass", DISEASE, 4), Entity("effusion", SIGN, 7))
    assert rank_entities(counts, 10) == expected
    assert rank_entities(dict(reversed(counts.items())), 10) == expected


def test_textual_codebook_gives_back_what_was_saved(stage: Stage) -> None:
    entities = (Entity("opacity", SIGN, 5), Entity("heart", STRUCTURE, 2), Entity("nodule", SIGN, 1))
    book = TextualCodebook(entities, torch.randn(3, 8), "abc", {"backend": "lexicon", "reports": 9})
    book.save(stage)
    again = TextualCodebook.load(stage)
    assert again.entities == entities and again.model == "abc" and again.provenance == book.provenance
    assert torch.equal(again.feature_KD, book.feature_KD) and len(again) == 3


def test_visual_codebook_gives_back_what_was_saved(stage: Stage) -> None:
    table = rank_keypatches(keypatches(0, 20), 20, 20)
    book = VisualCodebook.of(table, 3, "abc")
    book.save(stage)
    again = VisualCodebook.load(stage)
    assert again.model == "abc" and len(again) == 20 and torch.equal(again.feature_KD, book.feature_KD)
    assert "crop" not in again.table.column_names and again.table.equals(book.table.drop_columns("crop"))
    assert VisualCodebook.load(stage, crops=True).table["crop"].to_pylist() == table["crop"].to_pylist()
    features = torch.tensor(table["feature"].to_pylist())
    assert torch.equal(again.feature_KD, features), "each row keeps its own feature"


def test_empty_codebooks_can_be_saved_and_loaded(stage: Stage) -> None:
    TextualCodebook((), torch.zeros(0, 8), "abc").save(stage)
    VisualCodebook.of(KEYPATCH.empty_table(), 8, "abc").save(stage)
    assert len(TextualCodebook.load(stage)) == 0 and TextualCodebook.load(stage).feature_KD.shape == (0, 8)
    assert len(VisualCodebook.load(stage)) == 0 and VisualCodebook.load(stage).feature_KD.shape == (0, 8)


def test_unfinished_codebooks_name_their_job(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"build_codebooks\.py"):
        VisualCodebook.load(Root(str(tmp_path)).stage("codebooks"))


@pytest.mark.parametrize("book", [TextualCodebook((), torch.zeros(0, 8), "abc"),
                                  VisualCodebook(KEYPATCH.empty_table(), torch.zeros(0, 8), "abc")])  # fmt: skip
def test_codebook_of_another_model_is_refused_naming_both(book: TextualCodebook | VisualCodebook) -> None:
    book.require("abc", 8)
    with pytest.raises(ValueError, match=r"abc.*not by def"):
        book.require("def", 8)
    with pytest.raises(ValueError, match=r"8 dimensions.*abc has 16"):
        book.require("abc", 16)


def test_keypatches_are_ranked_by_similarity_with_ties_by_name() -> None:
    table = rank_keypatches(keypatches(1, 60), count=40, per_word=12)
    rows = table.to_pylist()
    keys = [(-r["similarity"], r["word"], r["study_id"], r["dicom_id"], r["patch"]) for r in rows]
    assert keys == sorted(keys) and len(rows) == 40
    assert max(sum(r["word"] == word for r in rows) for word in {r["word"] for r in rows}) == 12


@pytest.mark.parametrize(("count", "per_word"), [(7, 3), (30, 4), (5, 50), (500, 6)])
def test_ranking_shards_first_gives_what_ranking_all_gives(count: int, per_word: int) -> None:
    shards = [keypatches(seed, 40) for seed in range(5)]
    whole = rank_keypatches(pa.concat_tables(shards), count, per_word)
    kept = [rank_keypatches(shard, count, per_word) for shard in shards]
    streamed = KEYPATCH.empty_table()
    for part in reversed(kept):
        streamed = rank_keypatches(pa.concat_tables([streamed, part]), count, per_word)
    assert streamed.equals(whole)
