"""AdaMatch explains itself: keywords of an image, keypatches of a report, words and boxes of a pair (docs/method.md 2).

A similarity is a cosine of normalised features. Where something is, the image head that knows the place says (the local
one, where the model has it). Nothing is changed by a call, so threads may share an engine.
"""

from collections.abc import Collection, Sequence
from functools import cached_property
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adamatch_ray.codebooks import GROUPS, TextualCodebook, VisualCodebook
from adamatch_ray.data.facts import side_at
from adamatch_ray.engines.embedding import Embedder, ReportWord, whole_words
from adamatch_ray.engines.loader import load_embedder, load_place_head
from adamatch_ray.engines.placing import Phrase, Placer, Sight
from adamatch_ray.engines.regions import Box, Region
from adamatch_ray.geometry import CanvasImage, box_iou, place_of, side_of
from adamatch_ray.models.place_head import PlaceHead
from adamatch_ray.storage import Root

SAME_PLACE = 0.5
"""Intersection over union from which two boxes of one study show the same."""


class Keyword(NamedTuple):
    """An entity of the textual codebook that an image shows, and the adaptive patch that shows it best.

    `probability`: that a report of the image states it (NaN where the codebook cannot tell). `place` is side and zone
    of the box, see `geometry.place_of`.
    """

    text: str
    group: str
    score: float
    probability: float
    patch: int
    box: Box
    place: str


class Keypatch(NamedTuple):
    """An entry of the visual codebook that a word of a report matches; its box is in pixels of its source image."""

    word: str
    entry: int
    score: float
    study_id: str
    box: Box


class Match(NamedTuple):
    """The words of a report with the boxes of its image: cosine similarities [N, P], boxes in original pixels.

    A patch whose middle lies on the padding, beside the image, shows nothing: its similarity is -1 with every word.
    regions: where each word is seen, as one shape; that of its phrase where it is in one, None where that is denied.
    """

    words: tuple[str, ...]
    similarity_NP: NDArray[np.float32]
    boxes_P4: NDArray[np.float32]
    fixed_boxes_P4: NDArray[np.float32]
    phrases: tuple[Phrase, ...] = ()
    regions: tuple[Region | None, ...] = ()


class _Patches(NamedTuple):
    """Patches of one image: all heads [H, P, D], the head that tells the place, which lie on the image, boxes.

    sight: what words are placed by, where that was asked for.
    """

    heads_HPD: Tensor
    place_PD: Tensor
    shown_P: Tensor
    boxes_P4: NDArray[np.float32]
    fixed_boxes_P4: NDArray[np.float32]
    sight: Sight | None


class MatchingEngine:
    """Batch in, batch out; each answer is that of its own image or report, whatever else is in the batch.

    A blank image (of one gray value) and a report without a known word are not errors: their answers are empty.
    `entity_words` are the lower-case words that denote an entity, as far as the textual codebook tells them.
    """

    def __init__(
        self,
        embedder: Embedder,
        textual: TextualCodebook | None = None,
        visual: VisualCodebook | None = None,
        place: PlaceHead | None = None,
        *,
        shifted: bool = False,
    ) -> None:
        """`shifted`: place words by 16 shifted views of an image as well.

        Raises ValueError for a codebook of other dimensions, or of two AdaMatch stages.
        """
        codebooks = [codebook for codebook in (textual, visual) if codebook is not None]
        for codebook in codebooks:
            codebook.require(codebooks[0].model, embedder.model.sizes.adamatch.dim)
        self.embedder, self.textual, self.visual = embedder, textual, visual
        self.entity_words = frozenset(textual.provenance.get("words", ()) if textual is not None else ())
        self._entity_KD = None if textual is None else textual.feature_KD.to(embedder.device)
        self._entry_KD = None if visual is None else visual.feature_KD.to(embedder.device)
        self._placer = Placer(embedder, place, shifted)
        self._tokenizing = Lock()  # a fast tokenizer keeps its padding in itself and refuses a second thread

    @classmethod
    def load(cls, root: Root, device: str = "cpu") -> "MatchingEngine":
        """The engine of a root's `adamatch/` and `codebooks/`. ValueError where one is missing or they do not fit."""
        model = root.stage("adamatch").require().fingerprint
        stage = root.stage("codebooks")
        textual, visual = TextualCodebook.load(stage), VisualCodebook.load(stage)
        embedder = load_embedder(root, device)
        textual.require(model, embedder.model.sizes.adamatch.dim)
        visual.require(model, embedder.model.sizes.adamatch.dim)
        return cls(embedder, textual, visual, load_place_head(root, device))

    @torch.inference_mode()
    def keywords(
        self, images: Sequence[CanvasImage], count: int = 15, groups: Collection[str] = GROUPS, least: float = 0.0
    ) -> list[list[Keyword]]:
        """The `count` entities of `groups` that the patches of each image are most similar to, best first.

        Pooling the `count` best entities of each patch by similarity and dropping repetitions leaves each entity at
        its best patch; so that is what is looked for. The score is the mean of the image heads' best similarities.
        With `least` above 0 the order is that of probability, and what is less probable is left out.
        """
        textual = self._known_keywords()
        if least > 0 and textual.logistic_K2 is None:
            raise ValueError("this codebook has no probabilities; run: python jobs/build_codebooks.py --overwrite")
        wanted = torch.tensor([entity.group in groups for entity in textual.entities])
        answers: list[list[Keyword]] = []
        for image, patches in zip(images, self._patches(images), strict=True):
            if patches is None or not patches.shown_P.any() or not len(textual):
                answers.append([])
                continue
            score_K, patch_K = self._keyword_scores(patches)
            probability_K = textual.probability(score_K)
            order_K = (probability_K if least > 0 else score_K).argsort(descending=True, stable=True).cpu()
            found: dict[str, Keyword] = {}
            for k in order_K[wanted[order_K]].tolist():
                if len(found) == count or probability_K[k] < least:
                    break
                entity, patch = textual.entities[k], int(patch_K[k])
                box = _box(patches.boxes_P4[patch])
                place = place_of(box, image.height, image.width)
                score, probability = float(score_K[k]), float(probability_K[k])
                found.setdefault(entity.text, Keyword(entity.text, entity.group, score, probability, patch, box, place))
            answers.append(list(found.values()))
        return answers

    @torch.inference_mode()
    def keyword_scores(self, images: Sequence[CanvasImage]) -> NDArray[np.float32]:
        """The score [I, K] of every entity of the codebook in each image; -1 in a blank one."""
        textual = self._known_keywords()
        rows = [
            np.full(len(textual), -1.0, np.float32)
            if patches is None or not patches.shown_P.any()
            else self._keyword_scores(patches)[0].cpu().numpy()
            for patches in self._patches(images)
        ]
        return np.stack(rows)

    def _keyword_scores(self, patches: "_Patches") -> tuple[Tensor, Tensor]:
        """Score of each entity [K], and the patch that shows it best [K]."""
        assert self._entity_KD is not None
        hidden_P1 = ~patches.shown_P[:, None]
        score_K = (patches.heads_HPD @ self._entity_KD.T).masked_fill(hidden_P1, -torch.inf).amax(1).mean(0)
        return score_K, (patches.place_PD @ self._entity_KD.T).masked_fill(hidden_P1, -torch.inf).argmax(0)

    def _known_keywords(self) -> TextualCodebook:
        if self.textual is None:
            raise ValueError("keywords need the textual codebook; run: python jobs/build_codebooks.py")
        return self.textual

    @torch.inference_mode()
    def keypatches(self, reports: Sequence[str], count: int = 5, sided: bool = False) -> list[list[Keypatch]]:
        """For each word of a report the best entry of the visual codebook; the `count` most similar, best first.

        Words that denote no entity have none, as in the codebook. A word, an entry, and nearly the same box of the same
        image are given once, where they match best. `sided`: a word that the report puts on one side is matched with
        entries of that side alone.
        """
        if self.visual is None or self._entry_KD is None:
            raise ValueError("keypatches need the visual codebook; run: python jobs/build_codebooks.py")
        if not len(self.visual):
            return [[] for _ in reports]
        answers: list[list[Keypatch]] = []
        for report, (words, word_ND) in zip(reports, self._words(reports), strict=True):
            telling = [n for n, word in enumerate(words) if self._tells(word.text)]
            if not telling:
                answers.append([])
                continue
            score_NK = word_ND[telling] @ self._entry_KD.T
            if sided:
                sides = [side_at(report, words[n].place.start) for n in telling]
                score_NK = score_NK.masked_fill(~self._on_side(sides).to(score_NK.device), -1.0)
            score_N, entry_N = score_NK.max(1)
            order = score_N.argsort(descending=True, stable=True).tolist()
            table = self.visual.table.select(["study_id", "x0", "y0", "x1", "y1"]).take(entry_N[order].tolist())
            kept: list[Keypatch] = []
            for n, row in zip(order, table.to_pylist(), strict=True):
                study, *box = row.values()
                patch = Keypatch(words[telling[n]].text, int(entry_N[n]), float(score_N[n]), study, _box(box))
                if not any(_shows_the_same(patch, other) for other in kept):
                    kept.append(patch)
            answers.append(kept[:count])
        return answers

    @cached_property
    def _entry_sides(self) -> NDArray[np.str_]:
        """The side of the X-ray that each entry [K] of the visual codebook lies on."""
        assert self.visual is not None
        columns = (self.visual.table[name].to_pylist() for name in ("x0", "x1", "width"))
        return np.array([side_of((x0 + x1) / (2 * width)) for x0, x1, width in zip(*columns, strict=True)])

    def _on_side(self, sides: Sequence[str]) -> Tensor:
        """Which entries [N, K] of the visual codebook may stand for words on these sides."""
        anywhere = np.ones(len(self._entry_sides), dtype=bool)
        allowed = [self._entry_sides == side if side in ("left", "right") else anywhere for side in sides]
        return torch.from_numpy(np.stack(allowed))

    @torch.inference_mode()
    def match(self, images: Sequence[CanvasImage], reports: Sequence[str]) -> list[Match]:
        """Each image with its own report, word by word as the report has them; a blank image matches no word."""
        answers = []
        seen = zip(images, reports, self._patches(images, placing=True), self._words(reports), strict=True)
        for image, report, patches, (words, word_ND) in seen:
            if patches is None or patches.sight is None:
                nothing = np.zeros((0, 4), np.float32)
                answers.append(Match((), np.zeros((0, 0), np.float32), nothing, nothing))
                continue
            similarity_NP = (word_ND @ patches.place_PD.T).masked_fill(~patches.shown_P, -1.0)
            texts = tuple(word.text for word in words)
            placed = self._placer.place(image, patches.sight, report, words, word_ND)
            boxes = patches.boxes_P4, patches.fixed_boxes_P4
            answers.append(Match(texts, similarity_NP.cpu().numpy(), *boxes, *placed))
        return answers

    def _patches(self, images: Sequence[CanvasImage], placing: bool = False) -> list[_Patches | None]:
        """Patches of each image in the order given, None for a blank one. Canvases may be of several sizes."""
        answers: list[_Patches | None] = [None] * len(images)
        sides: dict[int, list[int]] = {}
        for number, image in enumerate(images):
            if not _is_blank(image):
                sides.setdefault(image.pixels.shape[-1], []).append(number)
        for numbers in sides.values():
            group = [images[number] for number in numbers]
            stages = self._placer.stages if placing else 0
            look = self.embedder.look(np.stack([image.pixels for image in group]), stages=stages)
            sights = self._placer.sights(group, look) if placing else [None] * len(group)
            found = look.patches
            place_BPD, fixed_P4 = self.embedder.places(found), found.fixed_boxes_P4.cpu().numpy()
            for b, number in enumerate(numbers):
                geometry, boxes_P4 = images[number].geometry, found.boxes_BP4[b].cpu().numpy()
                answers[number] = _Patches(
                    torch.stack([head[b] for head in found.heads]),
                    place_BPD[b],
                    torch.from_numpy(images[number].shows(boxes_P4)).to(self.embedder.device),
                    geometry.to_original(boxes_P4).astype(np.float32),
                    geometry.to_original(fixed_P4).astype(np.float32),
                    sights[b],
                )
        return answers

    def _words(self, reports: Sequence[str]) -> list[tuple[list[ReportWord], Tensor]]:
        """Whole words of each report and their features [N, D]."""
        if not reports:
            return []
        with self._tokenizing:
            words, texts = self.embedder.words(reports), self.embedder.reports(reports)
        return [(found, whole_words(texts.word_BND[b], found)) for b, found in enumerate(words)]

    def _tells(self, word: str) -> bool:
        """Whether a word has a letter, denotes an entity, and the text encoder knows all of it."""
        if not any(character.isalpha() for character in word):
            return False
        if self.entity_words and word.lower() not in self.entity_words:
            return False
        tokenizer = self.embedder.tokenizer
        with self._tokenizing:
            return tokenizer.unk_token not in tokenizer.tokenize(word.lower())


def _is_blank(image: CanvasImage) -> bool:
    inner = image.inner
    return bool(inner.min() == inner.max())


def _shows_the_same(patch: Keypatch, other: Keypatch) -> bool:
    if patch.entry == other.entry or patch.word.lower() == other.word.lower():
        return True
    overlap = box_iou(np.array([patch.box]), np.array([other.box]))[0, 0]
    return patch.study_id == other.study_id and bool(overlap >= SAME_PLACE)


def _box(corners: Sequence[float] | NDArray[np.float32]) -> Box:
    x0, y0, x1, y1 = (float(corner) for corner in corners)
    return x0, y0, x1, y1
