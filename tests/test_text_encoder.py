"""Reports to words: what may be matched, what may not, and that a report does not depend on its batch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertModel, PreTrainedTokenizerBase

from adamatch_ray.model_config import TextEncoderConfig
from adamatch_ray.models.text_encoder import (
    TextEncoder,
    Words,
    load_bert,
    load_tokenizer,
    new_bert,
    tokenize,
    train_tokenizer,
)

CONFIG = TextEncoderConfig(name_or_path="", max_tokens=32, layers=2, hidden_size=16, heads=2)


def encoder(tokenizer: PreTrainedTokenizerBase, **changes: Any) -> TextEncoder:
    torch.manual_seed(0)
    config = replace(CONFIG, **changes)
    return TextEncoder(config, new_bert(config, len(tokenizer)), tokenizer).eval()


@torch.inference_mode()
def words_of(model: TextEncoder, tokenizer: PreTrainedTokenizerBase, *reports: str, longest: int = 32) -> Words:
    return model(tokenize(tokenizer, reports, longest))


def hidden_of(model: TextEncoder, tokenizer: PreTrainedTokenizerBase, report: str) -> tuple[list[str], Tensor]:
    """Word pieces and their hidden states, CLS and SEP left out."""
    tokens = tokenize(tokenizer, [report], 32)
    with torch.inference_mode():
        hidden = model.bert(input_ids=tokens.ids_BT).last_hidden_state[0]
    pieces = tokenizer.convert_ids_to_tokens(tokens.ids_BT[0].tolist())
    return list(pieces)[1:-1], hidden[1:-1]


def test_only_words_are_matched_never_cls_sep_or_padding(
    tokenizer: PreTrainedTokenizerBase, reports: tuple[str, ...]
) -> None:
    tokens = tokenize(tokenizer, reports, 32)
    mask = words_of(encoder(tokenizer), tokenizer, *reports).mask_BN
    never = torch.tensor([tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id])
    assert mask.shape == tokens.ids_BT.shape
    assert torch.equal(mask, ~torch.isin(tokens.ids_BT, never))
    assert [int(n) for n in mask.sum(1)] == [len(tokenizer.tokenize(r.lower())) for r in reports]


def test_an_unknown_character_is_a_word_still(tokenizer: PreTrainedTokenizerBase) -> None:
    tokens = tokenize(tokenizer, ["heart ☃ heart"], 32)
    assert tokenizer.unk_token_id in tokens.ids_BT
    assert int(words_of(encoder(tokenizer), tokenizer, "heart ☃ heart").mask_BN.sum()) == 3


@pytest.mark.parametrize("unit", ["wordpiece", "word"])
def test_a_report_is_the_same_whatever_stands_beside_it(
    unit: str, tokenizer: PreTrainedTokenizerBase, reports: tuple[str, ...]
) -> None:
    model = encoder(tokenizer, unit=unit)
    batch = words_of(model, tokenizer, *reports)
    for i, report in enumerate(reports):
        alone = words_of(model, tokenizer, report)
        torch.testing.assert_close(
            batch.features_BNH[i][batch.mask_BN[i]], alone.features_BNH[0][alone.mask_BN[0]], rtol=1e-4, atol=1e-5
        )


def test_words_are_the_sums_of_their_pieces_and_the_mask_counts_words(
    tokenizer: PreTrainedTokenizerBase, reports: tuple[str, ...]
) -> None:
    """Mistake b: lengths counted in word pieces over word-level embeddings."""
    model = encoder(tokenizer, unit="word")
    batch = words_of(model, tokenizer, *reports)
    assert batch.features_BNH.shape[:2] == batch.mask_BN.shape
    several = 0
    for i, report in enumerate(reports):
        pieces, hidden = hidden_of(model, tokenizer, report)
        wanted: list[Tensor] = []
        for piece, vector in zip(pieces, hidden, strict=True):
            if piece.startswith("##"):
                wanted[-1] = wanted[-1] + vector
                several += 1
            else:
                wanted.append(vector)
        assert int(batch.mask_BN[i].sum()) == len(wanted) < len(pieces)
        torch.testing.assert_close(batch.features_BNH[i][batch.mask_BN[i]], torch.stack(wanted), rtol=1e-4, atol=1e-5)
    assert several > 10, "the test needs words in pieces"
    assert batch.mask_BN.shape[1] == int(batch.mask_BN.sum(1).max()), "no column beyond the longest report's words"


def test_long_reports_are_cut_and_keep_their_end_mark(tokenizer: PreTrainedTokenizerBase) -> None:
    tokens = tokenize(tokenizer, ["heart " * 40, "heart"], 12)
    assert tokens.ids_BT.shape == (2, 12) and tokens.ids_BT[0, -1] == tokenizer.sep_token_id
    assert tokens.mask_BT.dtype == torch.bool and [int(n) for n in tokens.mask_BT.sum(1)] == [12, 3]
    for unit in ("wordpiece", "word"):
        mask = words_of(encoder(tokenizer, unit=unit), tokenizer, "heart " * 40, longest=12).mask_BN
        assert int(mask.sum()) == 10


def test_case_does_not_matter(tokenizer: PreTrainedTokenizerBase) -> None:
    assert torch.equal(*(tokenize(tokenizer, [text], 32).ids_BT for text in ("The HEART.", "the heart.")))


def test_gradients_reach_the_encoder_in_either_unit(tokenizer: PreTrainedTokenizerBase) -> None:
    for unit in ("wordpiece", "word"):
        model = encoder(tokenizer, unit=unit)
        words = model(tokenize(tokenizer, ["the heart is enlarged"], 32))
        words.features_BNH[words.mask_BN].pow(2).sum().backward()
        gradient = model.bert.embeddings.word_embeddings.weight.grad
        assert gradient is not None and bool((gradient != 0).any())


# ---- tokenizers and weights -----------------------------------------------------------------------------------------


def test_the_same_reports_in_any_order_give_the_same_tokenizer(tmp_path: Path, reports: tuple[str, ...]) -> None:
    folders = [tmp_path / name for name in ("a", "b")]
    train_tokenizer(reports, 60, folders[0])
    train_tokenizer(iter(reports[::-1]), 60, folders[1])
    first, second = (load_tokenizer(folder) for folder in folders)
    assert first.get_vocab() == second.get_vocab() and len(first) <= 60
    for report in reports:
        ids = tokenize(first, [report], 64).ids_BT
        assert torch.equal(ids, tokenize(second, [report], 64).ids_BT)
        assert first.unk_token_id not in ids, "every character it was trained on has a piece"


def test_frequent_words_are_whole_and_unseen_ones_are_spelled(tmp_path: Path) -> None:
    train_tokenizer(["the heart and the lungs"] * 3 + ["tumor"], 40, tmp_path)
    found = load_tokenizer(tmp_path)
    assert found.tokenize("heart the") == ["heart", "the"]
    assert found.tokenize("heat") == ["h", "##e", "##a", "##t"]


def test_a_local_bert_loads_with_as_many_layers_as_are_asked_for(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    saved = new_bert(replace(CONFIG, layers=3), len(tokenizer))
    saved.save_pretrained(tmp_path)
    tokenizer.save_pretrained(str(tmp_path))
    config = replace(CONFIG, name_or_path=str(tmp_path), layers=2)
    loaded = load_bert(config)
    assert isinstance(loaded, BertModel) and len(loaded.encoder.layer) == 2
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    for name, value in loaded.state_dict().items():
        torch.testing.assert_close(value, saved.state_dict()[name])
    assert load_tokenizer(str(tmp_path)).get_vocab() == tokenizer.get_vocab()


def test_more_layers_than_there_are_is_an_error_not_a_random_layer(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    new_bert(replace(CONFIG, layers=1), len(tokenizer)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"text\.layers"):
        load_bert(replace(CONFIG, name_or_path=str(tmp_path), layers=2))


def test_a_missing_model_is_named_in_one_line(tmp_path: Path) -> None:
    missing = str(tmp_path / "none")
    with pytest.raises(ValueError, match=rf"text\.name_or_path {missing}") as caught:
        load_bert(replace(CONFIG, name_or_path=missing))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=rf"text\.name_or_path {missing}: no tokenizer there") as caught:
        load_tokenizer(missing)
    assert "\n" not in str(caught.value)
