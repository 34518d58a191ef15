"""Training on entity words: filler takes no part in the alignment, and no report is left without a word."""

import torch
from transformers import PreTrainedTokenizerBase

from adamatch_ray.engines.embedding import rows_of_words
from adamatch_ray.model_config import TextEncoderConfig
from adamatch_ray.models import text_encoder
from adamatch_ray.models.adamatch import TextEmbeddings
from adamatch_ray.train.fit_adamatch import aligned_words, only_rows

CONFIG = TextEncoderConfig(name_or_path="", max_tokens=32)


def test_the_lexicon_names_findings_and_leaves_filler_out() -> None:
    assert aligned_words("all") is None
    entities, findings = aligned_words("entities"), aligned_words("findings")
    assert entities is not None and findings is not None and findings < entities
    assert {"effusion", "nodule", "cardiomegaly"} <= findings
    assert not {"the", "is", "no", "of", "there"} & entities


def test_whole_words_are_chosen_with_all_of_their_pieces(tokenizer: PreTrainedTokenizerBase) -> None:
    report = "There is a small left pleural effusion."
    (rows,) = rows_of_words(tokenizer, [report], CONFIG, {"effusion", "left"})
    ids = text_encoder.tokenize(tokenizer, [report], 32).ids_BT[0]
    pieces = tokenizer.convert_ids_to_tokens(ids[rows].tolist())
    assert "".join(piece.removeprefix("##") for piece in pieces) == "lefteffusion"


def test_a_report_without_a_chosen_word_keeps_its_words() -> None:
    mask_BN = torch.tensor([[False, True, True, False], [False, True, True, True]])
    text = only_rows(TextEmbeddings(torch.zeros(2, 4, 3), mask_BN), [[], [0, 2]])
    assert text.mask_BN.tolist() == [[False, True, True, False], [False, False, True, False]]
