"""The report encoder: BERT hidden states of the words that may be matched (docs/method.md 1.3)."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers.pre_tokenizers import BertPreTokenizer
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, BertConfig, BertModel, BertTokenizer, PreTrainedTokenizerBase

from adamatch_ray.filesystems import at_hand
from adamatch_ray.model_config import TextEncoderConfig

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class Tokens(NamedTuple):
    """A padded batch of reports: ids and attention mask [B, T]; both int64 and bool."""

    ids_BT: Tensor
    mask_BT: Tensor

    def to(self, device: torch.device) -> "Tokens":
        """The same tokens on another device."""
        return Tokens(self.ids_BT.to(device), self.mask_BT.to(device))


class Words(NamedTuple):
    """What is matched: features [B, N, H] and which of the N are real words (never CLS, SEP or padding)."""

    features_BNH: Tensor
    mask_BN: Tensor


class TextEncoder(nn.Module):
    """BERT with its word pieces, or the words they make up, as output."""

    continuation: Tensor
    special: Tensor

    def __init__(self, config: TextEncoderConfig, bert: BertModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.config, self.bert = config, bert
        pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        # Not part of the saved weights: both follow from the tokenizer.
        self.register_buffer("continuation", torch.tensor([p.startswith("##") for p in pieces]), persistent=False)
        self.register_buffer("special", torch.tensor([i in special for i in range(len(pieces))]), persistent=False)

    def forward(self, tokens: Tokens) -> Words:
        """Features of the valid units of each report, in reading order.

        With `unit="word"` the pieces of a word are summed and the mask has the length of the words.
        """
        ids, mask = tokens
        hidden_BTH = self.bert(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        valid_BT = mask & ~self.special[ids]
        if self.config.unit == "wordpiece":
            return Words(hidden_BTH, valid_BT)
        return _sum_into_words(hidden_BTH, valid_BT, valid_BT & ~self.continuation[ids])


def _sum_into_words(hidden_BTH: Tensor, valid_BT: Tensor, first_BT: Tensor) -> Words:
    # A report cut inside a word may begin with a continuation: clamp keeps such a piece with the first word.
    word_BT = (first_BT.cumsum(1) - 1).clamp(min=0)
    count_B = torch.where(valid_BT.any(1), word_BT.max(1).values + 1, 0)
    length = max(1, int(count_B.max()))
    words = hidden_BTH.new_zeros(hidden_BTH.shape[0], length, hidden_BTH.shape[2])
    index = word_BT.unsqueeze(-1).expand_as(hidden_BTH)
    words = words.scatter_add(1, index, hidden_BTH * valid_BT.unsqueeze(-1))
    mask = torch.arange(length, device=count_B.device) < count_B.unsqueeze(1)
    return Words(words, mask)


def tokenize(tokenizer: PreTrainedTokenizerBase, reports: Sequence[str], max_tokens: int) -> Tokens:
    """Word pieces of lower-cased reports, padded to the longest of the batch and cut at `max_tokens`."""
    batch = tokenizer(
        [report.lower() for report in reports],
        padding=True,
        truncation=True,
        max_length=max_tokens,
        return_tensors="pt",
    )
    return Tokens(batch["input_ids"], batch["attention_mask"].bool())


def load_tokenizer(folder_or_name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a hub name or local folder. Raises ValueError naming what is missing."""
    try:
        return AutoTokenizer.from_pretrained(at_hand(folder_or_name))
    except OSError as error:
        raise ValueError(f"text.name_or_path {folder_or_name}: no tokenizer there ({_first_line(error)})") from None


def train_tokenizer(reports: Iterable[str], vocab_size: int, folder: Path) -> None:
    """A lower-casing WordPiece tokenizer from reports (of the train split), saved to `folder`.

    Its pieces are every character, alone and as a continuation, and the most frequent whole words. The usual merges
    would number equally frequent pieces by chance; this gives the same reports the same ids, always.
    """
    split = BertPreTokenizer()
    counts = Counter(word for report in reports for word, _ in split.pre_tokenize_str(report.lower()))
    characters = sorted({character for word in counts for character in word})
    pieces = [*SPECIAL, *characters, *("##" + character for character in characters)]
    words = sorted((word for word in counts if len(word) > 1), key=lambda word: (-counts[word], word))
    pieces += words[: max(0, vocab_size - len(pieces))]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    BertTokenizer(vocab=vocab, do_lower_case=True).save_pretrained(str(folder))


def load_bert(config: TextEncoderConfig) -> BertModel:
    """The pre-trained encoder of a hub name or local folder, in fp32, with its first `config.layers` layers.

    Raises ValueError when it cannot be had, or has no weights for all of these layers.
    """
    try:
        loaded: Any = BertModel.from_pretrained(
            at_hand(config.name_or_path),
            num_hidden_layers=config.layers,
            add_pooling_layer=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except OSError as error:
        raise ValueError(f"text.name_or_path {config.name_or_path}: cannot be loaded ({_first_line(error)})") from None
    bert: BertModel = loaded[0]
    if missing := sorted(loaded[1]["missing_keys"]):  # they would stay random
        raise ValueError(
            f"text.name_or_path {config.name_or_path} has no {missing[0]}; is it a BERT of text.layers {config.layers}?"
        )
    return bert


def new_bert(config: TextEncoderConfig, vocab_size: int) -> BertModel:
    """A small BERT with random weights for a tokenizer of `vocab_size` entries."""
    return BertModel(
        BertConfig(
            vocab_size=vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=4 * config.hidden_size,
            max_position_embeddings=max(128, config.max_tokens),
        ),
        add_pooling_layer=False,
    )


def bert_from_folder(folder: Path) -> BertModel:
    """A BERT of the architecture in `folder/config.json`, its weights not yet loaded."""
    return BertModel(AutoConfig.from_pretrained(str(folder)), add_pooling_layer=False)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
