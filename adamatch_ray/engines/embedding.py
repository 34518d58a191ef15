"""Images and reports to AdaMatch embeddings, batch in, batch out: used by validation, evaluation and matching."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from adamatch_ray.data import loading
from adamatch_ray.model_config import TextEncoderConfig
from adamatch_ray.models import adamatch, text_encoder
from adamatch_ray.models.adamatch import AdaMatch, ImageEmbeddings, TextEmbeddings
from adamatch_ray.models.inputs import model_input
from adamatch_ray.models.pvt import StageOutput
from adamatch_ray.storage import Stage


@dataclass(frozen=True)
class SplitEmbeddings:
    """A split in the joint space, on the CPU: heads [I, P, D] each, words [I, N, D] and their mask, reports, ids."""

    heads: tuple[Tensor, ...]
    word_IND: Tensor
    mask_IN: Tensor
    reports: tuple[str, ...]
    study_ids: tuple[str, ...]

    def beginning_with(self, rows: Sequence[int]) -> "SplitEmbeddings":
        """The same studies with those of `rows` first."""
        order = [*rows, *sorted(set(range(len(self.reports))) - set(rows))]
        heads = tuple(head[order] for head in self.heads)
        reports, ids = (tuple(column[row] for row in order) for column in (self.reports, self.study_ids))
        return SplitEmbeddings(heads, self.word_IND[order], self.mask_IN[order], reports, ids)


class ReportWord(NamedTuple):
    """A whole word as it stands in a report: `report[place] == text`; its pieces are the `rows` of `word_BND[b]`."""

    text: str
    place: slice
    rows: slice


class Look(NamedTuple):
    """Images as the model takes them [B, 3, S, S], what its stages say of them, and their patches."""

    input_BCHW: Tensor
    stages: list[StageOutput]
    patches: ImageEmbeddings


class Embedder:
    """A frozen AdaMatch on its device."""

    def __init__(self, model: AdaMatch, tokenizer: PreTrainedTokenizerBase, device: str | torch.device) -> None:
        self.device = torch.device(device)
        self.model, self.tokenizer = model.to(self.device), tokenizer

    @classmethod
    def from_pretrained(cls, folder_or_name: str | Path, device: str | torch.device = "cpu") -> "Embedder":
        """The AdaMatch of a model folder or hub name. ValueError where there is none."""
        return cls(*adamatch.load(folder_or_name), device)

    def images(self, canvas_BHW: np.ndarray, crop_B4: Tensor | None = None) -> ImageEmbeddings:
        """Patches of uint8 canvases [B, S, S]; of each only the unit box `crop_B4`, when given."""
        return self.look(canvas_BHW, crop_B4).patches

    @torch.inference_mode()
    def look(self, canvas_BHW: np.ndarray, crop_B4: Tensor | None = None, stages: int = 0) -> Look:
        """As `images`, with what the stages say: as far as the matched one, and at least the first `stages`."""
        image = model_input(canvas_BHW, self.model.sizes.image.image_size, self.device, crop_B4)
        matched = self.model.sizes.adamatch.stage
        outputs = self.model.image.forward_stages(image, max(stages, matched))
        return Look(image, outputs, self.model.project(outputs[matched - 1]))

    @torch.inference_mode()
    def reports(self, reports: Sequence[str]) -> TextEmbeddings:
        """Words of reports."""
        tokens = text_encoder.tokenize(self.tokenizer, reports, self.model.sizes.text.max_tokens)
        return self.model.embed_reports(tokens.to(self.device))

    def places(self, images: ImageEmbeddings) -> Tensor:
        """The head [B, P, D] that tells where something is: the local one, where the model has it."""
        names = self.model.head_names
        return images.heads[names.index("local") if "local" in names else 0]

    def words(self, reports: Sequence[str]) -> list[list[ReportWord]]:
        """The words of each report that `reports` embeds, in reading order, punctuation included."""
        return word_spans(self.tokenizer, reports, self.model.sizes.text)


def word_spans(
    tokenizer: PreTrainedTokenizerBase, reports: Sequence[str], config: TextEncoderConfig
) -> list[list[ReportWord]]:
    """Words of reports with the rows of their embeddings, for either `text.unit`; nothing beyond `max_tokens`."""
    if not reports:
        return []
    lowered = [report.lower() for report in reports]
    batch = tokenizer(lowered, truncation=True, max_length=config.max_tokens, return_offsets_mapping=True)
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    words: list[list[ReportWord]] = []
    for report, lower, ids, offsets in zip(reports, lowered, batch["input_ids"], batch["offset_mapping"], strict=True):
        groups: list[list[int]] = []
        for row, piece in enumerate(tokenizer.convert_ids_to_tokens(ids)):
            if ids[row] in special:
                continue
            if groups and piece.startswith("##"):
                groups[-1].append(row)
            else:
                groups.append([row])
        # Lower case of a few letters beyond ASCII is longer than they are; places are then those of the lower case.
        text = report if len(report) == len(lower) else lower
        words.append([_report_word(text, offsets, rows, n, config.unit) for n, rows in enumerate(groups)])
    return words


def _report_word(text: str, offsets: list[tuple[int, int]], rows: list[int], number: int, unit: str) -> ReportWord:
    begin, end = offsets[rows[0]][0], offsets[rows[-1]][1]
    while text[begin:end].isalnum() and text[end : end + 1].isalnum():
        end += 1  # the report was cut inside this word
    span = slice(rows[0], rows[-1] + 1) if unit == "wordpiece" else slice(number, number + 1)
    return ReportWord(text[begin:end], slice(begin, end), span)


def rows_of_words(
    tokenizer: PreTrainedTokenizerBase, reports: Sequence[str], config: TextEncoderConfig, chosen: Collection[str]
) -> list[list[int]]:
    """Of each report the rows of `word_BND[b]` whose whole words, in lower case, are among the chosen ones."""
    spans = word_spans(tokenizer, reports, config)
    return [
        [row for word in words if word.text.lower() in chosen for row in range(word.rows.start, word.rows.stop)]
        for words in spans
    ]


def whole_words(word_ND: Tensor, words: Sequence[ReportWord]) -> Tensor:
    """Normalised embeddings [W, D] of whole words: the mean over the pieces of each."""
    means = [word_ND[word.rows].mean(0) for word in words]
    return F.normalize(torch.stack(means), dim=-1) if means else word_ND[:0]


def embed_split(
    model: AdaMatch, tokenizer: PreTrainedTokenizerBase, studies: Stage, split: str, batch_size: int
) -> SplitEmbeddings:
    """Embed every study of a split, in stored order."""
    batches = map(loading.to_batch, loading.read_parts(studies, split, batch_size))
    return embed_batches(Embedder(model, tokenizer, next(model.parameters()).device), batches)


def embed_batches(embedder: Embedder, batches: Iterable[loading.Batch]) -> SplitEmbeddings:
    """Embed the images and reports of batches, of which there is at least one."""
    heads: list[tuple[Tensor, ...]] = []
    texts: list[TextEmbeddings] = []
    reports: list[str] = []
    ids: list[str] = []
    for batch in batches:
        heads.append(tuple(head.cpu() for head in embedder.images(batch["image"]).heads))
        texts.append(TextEmbeddings(*(t.cpu() for t in embedder.reports(list(batch["report"])))))
        reports += list(batch["report"])
        ids += list(batch["study_id"])
    longest = max(t.mask_BN.shape[1] for t in texts)
    return SplitEmbeddings(
        heads=tuple(torch.cat(parts) for parts in zip(*heads, strict=True)),
        word_IND=torch.cat([F.pad(t.word_BND, (0, 0, 0, longest - t.mask_BN.shape[1])) for t in texts]),
        mask_IN=torch.cat([F.pad(t.mask_BN, (0, longest - t.mask_BN.shape[1])) for t in texts]),
        reports=tuple(reports),
        study_ids=tuple(ids),
    )
