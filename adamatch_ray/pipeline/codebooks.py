"""How the train split becomes codebooks: a studies shard at a time, then ranked together (`build_codebooks`).

Each shard yields its entity counts, then its best keypatches: never more than the codebook may hold, so embeddings are
never stored as a whole. What a shard yields depends on the shard and the settings alone, and ranking what the shards
yield is ranking everything, so neither the number of workers nor the order of their work leaves a trace.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from adamatch_ray.codebooks import KEYPATCH_LIGHT, TextualCodebook, VisualCodebook, rank_entities, rank_keypatches
from adamatch_ray.data.facts import affirmed
from adamatch_ray.data.images import decode_png, encode_png
from adamatch_ray.engines.embedding import Embedder, ReportWord, whole_words
from adamatch_ray.engines.entities import denoting_words, finder_identity, open_finder, read_lexicon
from adamatch_ray.engines.loader import load_embedder
from adamatch_ray.engines.matching import MatchingEngine
from adamatch_ray.geometry import Boxes, CanvasImage
from adamatch_ray.schema import KEYPATCH
from adamatch_ray.shards import MadeShard, identity_of, make_shard
from adamatch_ray.storage import Root, Stage

TEXTS_AT_ONCE = 64
"""Keywords encoded together, so that no size of codebook meets the text encoder's limits."""

_STATEMENTS = pa.schema([("similarity", pa.list_(pa.float32())), ("stated", pa.list_(pa.int32()))])
_COUNTS = pa.schema([("text", pa.string()), ("group", pa.string()), ("count", pa.int64())])


class EntityCounts:
    """Writes `entities/<shard>`: in how many reports of a train shard each entity is found."""

    def __init__(self, root: str, backend: str, ner: str, min_score: float, device: str = "cpu") -> None:
        """Finders as `open_finder` names them. Raises ValueError while `studies/` is unfinished."""
        stages = Root(root)
        self.studies, self.target = stages.stage("studies"), stages.stage("codebooks")
        self.finder = open_finder(backend, ner, min_score, device)
        self.maker = [self.studies.require().fingerprint, finder_identity(backend, ner, min_score)]

    def make(self, file: str) -> MadeShard:
        """Count the entities of one studies shard, unless that was done."""
        return make_shard(self.target, f"entities/{file}", identity_of(self.maker, file), lambda: self._table(file))

    def _table(self, file: str) -> pa.Table:
        reports = self.studies.read_table(file, ["report"])["report"].to_pylist()
        counts = Counter(entity for entities in self.finder.find(reports) for entity in entities)
        counted = [{"text": text, "group": group, "count": count} for (text, group), count in sorted(counts.items())]
        return pa.Table.from_pylist(counted, schema=_COUNTS)


class KeypatchCandidates:
    """Writes `candidates/<shard>`: the keypatches of a train shard that may enter the visual codebook.

    For each word of a report that denotes an entity, the patch of its study that it resembles most, where that patch
    lies (the local image head where there is one), and how alike they are. A word said twice counts once, where it
    resembles a patch most. Patches that lie in the padding or have no extent are nobody's.
    """

    def __init__(
        self, root: str, words: Collection[str], keypatches: int, per_word: int, batch_size: int, device: str = "cpu"
    ) -> None:
        """`words`: lower-case words that may have keypatches. Raises ValueError while a parent stage is unfinished."""
        stages = Root(root)
        self.studies, self.target = stages.stage("studies"), stages.stage("codebooks")
        self.words, self.keypatches, self.per_word, self.batch_size = frozenset(words), keypatches, per_word, batch_size
        self.maker = [self.studies.require().fingerprint, stages.stage("adamatch").require().fingerprint,
                      sorted(words), keypatches, per_word, batch_size, device]  # fmt: skip
        self.embedder = load_embedder(stages, device)

    def make(self, file: str) -> MadeShard:
        """Find the keypatches of one studies shard, unless that was done."""
        columns = ["study_id", "dicom_id", "report", "image", "height", "width"]
        return make_shard(
            self.target, f"candidates/{file}", identity_of(self.maker, file),
            lambda: self.table(self.studies.read_table(file, columns).to_pylist()),
        )  # fmt: skip

    def table(self, studies: Sequence[Mapping[str, Any]]) -> pa.Table:
        """The ranked KEYPATCH rows of studies, no more than the codebook may hold."""
        candidates = [
            candidate
            for start in range(0, len(studies), self.batch_size)
            for candidate in self._of_batch(studies[start : start + self.batch_size])
        ]
        light = pa.Table.from_pylist([candidate.row for candidate in candidates], schema=KEYPATCH_LIGHT)
        numbered = light.append_column("number", pa.array(range(len(candidates)), pa.int64()))
        ranked = rank_keypatches(numbered, self.keypatches, self.per_word)
        kept = [candidates[number] for number in ranked["number"].to_pylist()]
        columns = {name: ranked[name] for name in KEYPATCH_LIGHT.names}
        columns["feature"] = pa.array([c.feature_D for c in kept], KEYPATCH.field("feature").type)
        columns["crop"] = pa.array([c.crop() for c in kept], pa.binary())
        return pa.table(columns, schema=KEYPATCH)

    def _of_batch(self, studies: Sequence[Mapping[str, Any]]) -> Iterator["_Candidate"]:
        canvas_BHW = np.stack([decode_png(study["image"]) for study in studies])
        reports = [study["report"] for study in studies]
        images, text = self.embedder.images(canvas_BHW), self.embedder.reports(reports)
        patch_BPD = self.embedder.places(images)
        for b, (study, words) in enumerate(zip(studies, self.embedder.words(reports), strict=True)):
            image = CanvasImage(canvas_BHW[b], study["height"], study["width"])
            boxes_P4 = image.geometry.to_original(images.boxes_BP4[b].double().cpu().numpy())
            spoken = [word for word in words if word.text.lower() in self.words]
            best = _best_patches(text.word_BND[b], spoken, patch_BPD[b], _on_image(image, boxes_P4))
            for word, (patch, similarity) in sorted(best.items()):
                corners = dict(zip(("x0", "y0", "x1", "y1"), boxes_P4[patch].tolist(), strict=True))
                place = {"height": image.height, "width": image.width, **corners}
                names = {"study_id": study["study_id"], "dicom_id": study["dicom_id"]}
                row = {"word": word, "similarity": similarity, "patch": patch, **names, **place}
                yield _Candidate(row, patch_BPD[b, patch].cpu().numpy(), image, boxes_P4[patch])


class KeywordStatements:
    """Writes `statements/<shard>`: how similar each keyword is to the images of a shard, and whether reports state it.

    A report states what it names outside a denial.
    """

    def __init__(
        self, root: str, textual: TextualCodebook, finder: tuple[str, str, float], batch_size: int, device: str
    ) -> None:
        """`finder`: backend, name and least score, as `open_finder` takes them."""
        stages = Root(root)
        self.studies, self.target = stages.stage("studies"), stages.stage("codebooks")
        self.finder, self.batch_size = open_finder(*finder, device), batch_size
        self.keywords = {entity.text: k for k, entity in enumerate(textual.entities)}
        self.maker = [self.studies.require().fingerprint, textual.model, list(self.keywords), list(finder)]
        self.engine = MatchingEngine(load_embedder(stages, device), textual)

    def make(self, file: str) -> MadeShard:
        """Compare one studies shard with all keywords, unless that was done."""
        return make_shard(self.target, f"statements/{file}", identity_of(self.maker, file), lambda: self._table(file))

    def _table(self, file: str) -> pa.Table:
        listed = self.studies.read_table(file, ["report", "image", "height", "width"]).to_pylist()
        images = [CanvasImage(decode_png(row["image"]), row["height"], row["width"]) for row in listed]
        starts = range(0, len(images), self.batch_size)
        similarity_IK = np.concatenate([self.engine.keyword_scores(images[i : i + self.batch_size]) for i in starts])
        stated = self.finder.find([affirmed(row["report"]) for row in listed])
        named = [sorted({self.keywords[e.text] for e in own if e.text in self.keywords}) for own in stated]
        return pa.table([similarity_IK.tolist(), named], schema=_STATEMENTS)


def merge_statements(
    stage: Stage, files: Iterable[str], keywords: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Similarities and statements [I, K] of all shards."""
    tables = [stage.read_table(file) for file in files]
    rows = pa.concat_tables(tables).to_pylist() if tables else []
    stated_IK = np.zeros((len(rows), keywords), dtype=bool)
    for row_K, row in zip(stated_IK, rows, strict=True):
        row_K[row["stated"]] = True
    return np.array([row["similarity"] for row in rows], np.float32).reshape(-1, keywords), stated_IK


class _Candidate(NamedTuple):
    row: dict[str, Any]
    feature_D: NDArray[np.float32]
    image: CanvasImage
    box_4: Boxes

    def crop(self) -> bytes:
        """PNG of the box, as large as it is on the canvas."""
        x0, y0, x1, y1 = _canvas_pixels(self.image, self.box_4)
        left, top = int(x0), int(y0)
        return encode_png(self.image.pixels[top : max(top + 1, round(y1)), left : max(left + 1, round(x1))])


def build_textual(
    embedder: Embedder, model: str, counts: Mapping[tuple[str, str], int], *, per_group: int, min_count: int,
    provenance: Mapping[str, Any],
) -> TextualCodebook:  # fmt: skip
    """The textual codebook of entity counts; `provenance["words"]` are the words of reports that denote its entities.

    Raises ValueError when no entity was found often enough.
    """
    entities = rank_entities(counts, per_group, min_count)
    if not entities:
        raise ValueError(
            f"no entity is found in {min_count} or more train reports; use other reports, another "
            "--codebooks.backend, or a lower --codebooks.min_count or --codebooks.min_score"
        )
    texts = [entity.text for entity in entities]
    words = denoting_words(texts, read_lexicon() if provenance.get("backend") == "lexicon" else None)
    return TextualCodebook(entities, encode_texts(embedder, texts), model, {**provenance, "words": sorted(words)})


def encode_texts(embedder: Embedder, texts: Sequence[str]) -> Tensor:
    """Features [K, D] of texts, each by itself: the normalised mean of its word embeddings; on the CPU."""
    parts = [torch.zeros(0, embedder.model.sizes.adamatch.dim)]
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        text = embedder.reports(texts[start : start + TEXTS_AT_ONCE])
        sum_BD = (text.word_BND * text.mask_BN.unsqueeze(-1)).sum(1)  # the mean has the same direction
        parts.append(F.normalize(sum_BD, dim=-1).cpu())
    return torch.cat(parts)


def merge_counts(stage: Stage, files: Iterable[str]) -> Counter[tuple[str, str]]:
    """Entity counts of the whole split from those of its shards."""
    counts: Counter[tuple[str, str]] = Counter()
    for file in files:
        for row in stage.read_table(file).to_pylist():
            counts[row["text"], row["group"]] += row["count"]
    return counts


def merge_candidates(
    stage: Stage, files: Iterable[str], model: str, dim: int, *, keypatches: int, per_word: int
) -> VisualCodebook:
    """The visual codebook of the whole split from the candidates of its shards, one shard in memory at a time."""
    kept = KEYPATCH.empty_table()
    for file in files:
        both = pa.concat_tables([kept, stage.read_table(file).cast(KEYPATCH)])
        kept = rank_keypatches(both, keypatches, per_word).combine_chunks()
    return VisualCodebook.of(kept, dim, model)


def _best_patches(
    word_ND: Tensor, words: Sequence[ReportWord], patch_PD: Tensor, usable_P: NDArray[np.bool_]
) -> dict[str, tuple[int, float]]:
    """Each word's best patch and its similarity (the maximum of eq. 6), over all its mentions."""
    if not words or not usable_P.any():
        return {}
    similarity_WP = (whole_words(word_ND, words) @ patch_PD.T).cpu().numpy()
    similarity_WP = np.where(usable_P, similarity_WP, -np.inf)
    best: dict[str, tuple[int, float]] = {}
    for word, similarity_P in zip(words, similarity_WP, strict=True):
        patch = int(similarity_P.argmax())
        similarity, key = float(similarity_P[patch]), word.text.lower()
        if key not in best or similarity > best[key][1]:
            best[key] = patch, similarity
    return best


def _on_image(image: CanvasImage, boxes_P4: Boxes) -> NDArray[np.bool_]:
    """Which boxes (original pixels, clipped to the image) are at least a pixel of the canvas wide and high."""
    corners = _canvas_pixels(image, boxes_P4)
    wide_high = corners[..., 2:] - corners[..., :2]
    return np.asarray((wide_high >= 1.0 - 1e-6).all(-1))


def _canvas_pixels(image: CanvasImage, boxes: Boxes) -> Boxes:
    return np.asarray(image.geometry.to_canvas(boxes), np.float64) * image.pixels.shape[-1]
