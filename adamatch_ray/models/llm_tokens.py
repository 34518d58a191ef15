"""Which id means what: the tokenizer's text rows first, then one row for each code of the VQ-GAN (section 3.2).

Image tokens have no spelling. They travel as ids from the token cache to the model and back, so no text, whatever it
says, can be mistaken for one.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, GPTNeoXTokenizer, PreTrainedTokenizerBase

from adamatch_ray.filesystems import at_hand

INSTRUCTION_KEY = "### Instruction:"
RESPONSE_KEY = "### Response:\n"
END_KEY = "### End"
KEYS = (END_KEY, INSTRUCTION_KEY, RESPONSE_KEY)
"""Keys that are one token each. Everything else of a prompt is plain text."""

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|padding|>"
BYTE_TOKENS = 256


@dataclass(frozen=True)
class TokenLayout:
    """Rows of the vocabulary: ids [0, text_size) are the tokenizer's, [text_size, vocab_size) are image codes.

    `quantizer` is the fingerprint of the VQ-GAN whose codes these are ("" where unknown); `context` is the longest
    sequence, prompt and answer together, that the model can hold.
    """

    text_size: int
    image_codes: int
    image_grid: tuple[int, int]
    end_id: int
    pad_id: int
    context: int
    quantizer: str = ""

    def __post_init__(self) -> None:
        if min(self.text_size, self.image_codes, *self.image_grid) < 1:
            raise ValueError(f"{self}: sizes must be positive; take them from the tokenizer and the VQ-GAN")

    @property
    def image_start(self) -> int:
        """Id of image code 0."""
        return self.text_size

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding and of the head."""
        return self.text_size + self.image_codes

    @property
    def image_tokens(self) -> int:
        """Tokens of one image, h·w."""
        return self.image_grid[0] * self.image_grid[1]

    def encode_image(self, codes: ArrayLike) -> list[int]:
        """VQ-GAN codes, any shape, raster order, to token ids. ValueError for a code outside [0, image_codes)."""
        flat = np.asarray(codes).astype(np.int64).reshape(-1)
        if flat.size and (flat.min() < 0 or flat.max() >= self.image_codes):
            wrong = int(flat.max() if flat.max() >= self.image_codes else flat.min())
            raise ValueError(
                f"image code {wrong} is outside the model's {self.image_codes} codes [0, {self.image_codes - 1}]: "
                "the token cache was made by another VQ-GAN; run cache_tokens with the one this model was tuned on"
            )
        return (flat + self.image_start).tolist()

    def encode_whole_image(self, codes: ArrayLike) -> list[int]:
        """As `encode_image`, for exactly one image of h·w codes; ValueError for any other count."""
        ids = self.encode_image(codes)
        if len(ids) != self.image_tokens:
            rows, columns = self.image_grid
            raise ValueError(
                f"an image of {len(ids)} codes does not fit the model's grid {rows}x{columns} = {self.image_tokens}: "
                "take the token cache and the model from the same VQ-GAN"
            )
        return ids

    def decode_image(self, ids: Sequence[int]) -> NDArray[np.uint16]:
        """Token ids back to codes, uint16 [len(ids)]. ValueError for an id that is not an image token."""
        codes = np.asarray(ids, dtype=np.int64) - self.image_start
        if codes.size and (codes.min() < 0 or codes.max() >= self.image_codes):
            raise ValueError(f"image ids must lie in [{self.image_start}, {self.vocab_size - 1}], got {list(ids)[:8]}…")
        return codes.astype(np.uint16)

    def check_cache(self, image_codes: int, image_grid: tuple[int, int], quantizer: str) -> None:
        """Refuse a token cache that another VQ-GAN wrote: ValueError naming both sides."""
        ours = (self.image_codes, tuple(self.image_grid))
        theirs = (image_codes, tuple(image_grid))
        if ours != theirs or (self.quantizer and quantizer and self.quantizer != quantizer):
            raise ValueError(
                f"the token cache has {image_codes} codes on grid {image_grid} (VQ-GAN {quantizer or 'unknown'}), the "
                f"model expects {self.image_codes} on {self.image_grid} (VQ-GAN {self.quantizer or 'unknown'}): "
                "run cache_tokens again with the model's VQ-GAN, or tune_llm again with this cache"
            )


def prepare_tokenizer(name_or_path: str | Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder or the hub and make each of `KEYS` one token, adding those that are missing.

    Dolly's ships without the line break of `### Response:\\n`; with it the length is 50,281.
    """
    return add_keys(AutoTokenizer.from_pretrained(at_hand(name_or_path)))


def add_keys(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Register missing `KEYS` as special tokens, and end of text as padding where there is none, in place."""
    known = tokenizer.get_vocab()
    missing = [key for key in KEYS if key not in known]
    if missing:
        tokenizer.add_special_tokens({"extra_special_tokens": missing}, replace_extra_special_tokens=False)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def make_layout(
    tokenizer: PreTrainedTokenizerBase,
    image_codes: int,
    image_grid: tuple[int, int],
    context: int,
    quantizer: str = "",
) -> TokenLayout:
    """Layout of a prepared tokenizer and a VQ-GAN, nothing assumed of either. ValueError if a key is not one id."""
    vocabulary = tokenizer.get_vocab()
    missing = [key for key in KEYS if key not in vocabulary]
    if missing:
        raise ValueError(f"the tokenizer has no token for {missing}: load it with prepare_tokenizer")
    return TokenLayout(
        text_size=len(tokenizer),
        image_codes=image_codes,
        image_grid=image_grid,
        end_id=vocabulary[END_KEY],
        pad_id=int(tokenizer.pad_token_id),
        context=context,
        quantizer=quantizer,
    )


def train_bpe_tokenizer(
    texts: Iterable[str], vocab_size: int, out_dir: str | Path, phrases: Sequence[str] = ()
) -> PreTrainedTokenizerBase:
    """Train a byte-level BPE tokenizer on the train split's reports, save it to `out_dir` and return it.

    Same kind as dolly's, so no text is unknown to it; same texts, same tokenizer. Each of `phrases` is one token.
    `vocab_size` counts them and the special tokens; training stops early where the texts hold no more pairs.
    ValueError if bytes, phrases and keys alone exceed it.
    """
    special = [END_OF_TEXT, PADDING, *KEYS]
    least = BYTE_TOKENS + len(special) + len(phrases)
    if vocab_size < least:
        raise ValueError(f"vocab_size {vocab_size} is below the {least} that bytes and special tokens need")
    model = Tokenizer(models.BPE())
    model.normalizer = normalizers.NFC()
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(phrases),
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    learnt = json.loads(model.to_str())["model"]
    merges: Any = [tuple(merge) for merge in learnt["merges"]]
    tokenizer = GPTNeoXTokenizer(
        vocab=learnt["vocab"],
        merges=merges,
        additional_special_tokens=list(KEYS),
    )
    tokenizer.add_tokens([AddedToken(phrase, normalized=False) for phrase in phrases])
    tokenizer.save_pretrained(str(out_dir))
    return tokenizer
