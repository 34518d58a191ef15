"""Images and reports to AdaMatch embeddings, batch in, batch out: used by validation, evaluation and matching."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from adamatch_ray.artifacts import Stage
from adamatch_ray.data import loading
from adamatch_ray.models import text_encoder
from adamatch_ray.models.adamatch import AdaMatch, ImageEmbeddings, TextEmbeddings
from adamatch_ray.models.inputs import model_input


@dataclass(frozen=True)
class SplitEmbeddings:
    """A split in the joint space, on the CPU: heads [I, P, D] each, words [I, N, D] and their mask, reports, ids."""

    heads: tuple[Tensor, ...]
    word_IND: Tensor
    mask_IN: Tensor
    reports: tuple[str, ...]
    study_ids: tuple[str, ...]


class Embedder:
    """A frozen AdaMatch on its device."""

    def __init__(self, model: AdaMatch, tokenizer: PreTrainedTokenizerBase, device: torch.device) -> None:
        self.model, self.tokenizer, self.device = model, tokenizer, device

    @torch.inference_mode()
    def images(self, canvas_BHW: np.ndarray) -> ImageEmbeddings:
        """Patches of uint8 canvases [B, S, S]."""
        return self.model.embed_images(model_input(canvas_BHW, self.model.sizes.image.image_size, self.device))

    @torch.inference_mode()
    def reports(self, reports: Sequence[str]) -> TextEmbeddings:
        """Words of reports."""
        tokens = text_encoder.tokenize(self.tokenizer, reports, self.model.sizes.text.max_tokens)
        return self.model.embed_reports(tokens.to(self.device))


def embed_split(
    model: AdaMatch, tokenizer: PreTrainedTokenizerBase, studies: Stage, split: str, batch_size: int
) -> SplitEmbeddings:
    """Embed every study of a split, in stored order."""
    embedder = Embedder(model, tokenizer, next(model.parameters()).device)
    heads: list[tuple[Tensor, ...]] = []
    texts: list[TextEmbeddings] = []
    reports: list[str] = []
    ids: list[str] = []
    for table in loading.read_split(studies, split):
        for start in range(0, table.num_rows, batch_size):
            batch = loading.to_batch(table.slice(start, batch_size))
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
