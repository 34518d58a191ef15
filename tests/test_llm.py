"""The language model: vocabulary, checkpoints that fit or do not, the Hugging Face round trip, and its loss."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPTNeoXConfig,
    GPTNeoXTokenizer,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from adamatch_ray.models.llm import LLMConfig, build_llm, extend_vocabulary, layout_of, load_llm, save_llm
from adamatch_ray.models.llm_loss import IGNORE, PackedBatch, ResponseLossModel, response_loss
from adamatch_ray.models.llm_tokens import (
    KEYS,
    TokenLayout,
    add_keys,
    make_layout,
    prepare_tokenizer,
    train_bpe_tokenizer,
)

REPORTS = [
    "The lungs are clear. No pleural effusion or pneumothorax. Heart size is normal.",
    "Small left pleural effusion with atelectasis at the left base. The heart is mildly enlarged.",
    "A 12 mm nodule projects over the right upper lobe. No acute cardiopulmonary process.",
]
SMALL = LLMConfig(
    name_or_path="", hidden_size=32, layers=2, heads=2, context=128, vocab_size=300, dtype="float32", seed=3
)
GRID = (4, 4)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    return train_bpe_tokenizer(REPORTS, 300, tmp_path_factory.mktemp("tokenizer"))


class Entries:
    """A tokenizer reduced to what the layout asks of it: its length, its keys and its padding."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.pad_token_id = 0

    def __len__(self) -> int:
        return self.size

    def get_vocab(self) -> dict[str, int]:
        return {key: self.size - len(KEYS) + index for index, key in enumerate(KEYS)}


def text_model(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    assert isinstance(model, PreTrainedModel)
    return model


def neox(rows: int) -> PreTrainedModel:
    return text_model(
        GPTNeoXConfig(vocab_size=rows, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    )


def test_dolly_has_50281_text_rows_and_1024_image_rows() -> None:
    layout = make_layout(cast(PreTrainedTokenizerBase, Entries(50_281)), 1024, (16, 16), context=2048)
    assert layout.vocab_size == 51_305
    assert layout.encode_image([0, 1023]) == [50_281, 51_304]
    assert layout.decode_image([50_281, 51_304]).tolist() == [0, 1023]
    assert layout.image_tokens == 256


def test_layout_refuses_codes_of_another_vqgan() -> None:
    layout = TokenLayout(300, 16, (4, 4), end_id=2, pad_id=1, context=128, quantizer="abc")
    with pytest.raises(ValueError, match=r"code 16 .* 16 codes"):
        layout.encode_image([3, 16])
    with pytest.raises(ValueError, match=r"5 codes .* 4x4"):
        layout.encode_whole_image([1, 2, 3, 4, 5])
    with pytest.raises(ValueError, match="image ids"):
        layout.decode_image([299])
    layout.check_cache(16, (4, 4), "abc")
    with pytest.raises(ValueError, match=r"1024 codes.*expects 16"):
        layout.check_cache(1024, (16, 16), "abc")
    with pytest.raises(ValueError, match=r"VQ-GAN xyz.*VQ-GAN abc"):
        layout.check_cache(16, (4, 4), "xyz")


def test_tokenizer_is_deterministic_byte_complete_and_keeps_keys_whole(tmp_path: Path) -> None:
    first = train_bpe_tokenizer(REPORTS, 320, tmp_path / "a")
    train_bpe_tokenizer(iter(REPORTS), 320, tmp_path / "b")
    digests = {hashlib.sha256((tmp_path / d / "tokenizer.json").read_bytes()).hexdigest() for d in "ab"}
    assert len(digests) == 1
    assert len(first) == 320
    odd = "Größe 3 by 4 cm ___ \n\t🫁"
    assert first.decode(first.encode(odd)) == odd
    assert [len(first.encode(key)) for key in KEYS] == [1, 1, 1]
    with pytest.raises(ValueError, match="vocab_size 100 is below the 261"):
        train_bpe_tokenizer(REPORTS, 100, tmp_path / "c")


def test_missing_keys_are_added_once_and_survive_saving(tmp_path: Path) -> None:
    alphabet = {token: index for index, token in enumerate(["<|endoftext|>", *map(chr, range(33, 127))])}
    shipped = ["### End", "### Instruction:", "### Response:"]
    dolly = GPTNeoXTokenizer(vocab=alphabet, merges=[], pad_token="<|endoftext|>", additional_special_tokens=shipped)
    before = len(dolly)
    dolly.save_pretrained(str(tmp_path / "shipped"))
    ready = prepare_tokenizer(tmp_path / "shipped")
    assert len(ready) == len(add_keys(ready)) == before + 1
    assert ready.get_vocab()["### Response:\n"] == before and ready.pad_token_id is not None
    assert len(ready.encode("### Response:\n")) == 1
    ready.save_pretrained(str(tmp_path / "ready"))
    assert prepare_tokenizer(tmp_path / "ready").get_vocab() == ready.get_vocab()


def test_built_model_has_tokenizer_plus_code_rows_and_is_seeded(tokenizer: PreTrainedTokenizerBase) -> None:
    model, again = build_llm(SMALL, tokenizer, 16, GRID), build_llm(SMALL, tokenizer, 16, GRID)
    head = model.get_output_embeddings()
    assert head is not None and head.weight.shape == (316, 32)
    for one, two in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)
    assert layout_of(model, tokenizer).image_start == 300


@pytest.mark.parametrize("rows", [300, 304, 400])
def test_rows_beyond_the_tokenizer_become_image_rows(tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    model = neox(rows)
    embedding = model.get_input_embeddings().weight
    assert isinstance(embedding, torch.Tensor)
    with torch.no_grad():
        embedding[300:] = 77.0
    trained = embedding[:300].clone()
    extend_vocabulary(model, tokenizer, 16)
    extended = model.get_input_embeddings().weight
    assert isinstance(extended, torch.Tensor) and extended.shape[0] == 316
    torch.testing.assert_close(extended[:300], trained, rtol=0, atol=0)
    assert extended[300:].abs().max() < 0.2 and extended[300:].std() > 0.01


def test_tokenizer_of_another_model_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="300 entries, the checkpoint 200 rows"):
        extend_vocabulary(neox(200), tokenizer, 16)
    with pytest.raises(ValueError, match="300 entries, the checkpoint 5000 rows"):
        extend_vocabulary(neox(5000), tokenizer, 16)


def test_pretrained_folder_is_extended_then_tuned_folder_is_kept(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    neox(304).save_pretrained(str(tmp_path / "text"))
    config = LLMConfig(name_or_path=str(tmp_path / "text"), dtype="float32")
    model = build_llm(config, tokenizer, 16, GRID, quantizer="abc")
    save_llm(model, tokenizer, tmp_path / "tuned")
    tuned = LLMConfig(name_or_path=str(tmp_path / "tuned"), dtype="float32")
    again = build_llm(tuned, tokenizer, 16, GRID, quantizer="abc")
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], weight, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"VQ-GAN abc.*xyz"):
        build_llm(tuned, tokenizer, 16, GRID, quantizer="xyz")
    with pytest.raises(ValueError, match=r"16 image codes.*has 32"):
        build_llm(tuned, tokenizer, 32, GRID)
    with pytest.raises(ValueError, match="no image tokens"):
        load_llm_text_only(tmp_path / "text", tokenizer)


def load_llm_text_only(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.save_pretrained(str(folder))
    load_llm(folder)


@pytest.mark.parametrize("tied", [False, True])
def test_saved_folder_loads_with_plain_transformers(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, tied: bool
) -> None:
    model = build_llm(replace(SMALL, tied=tied, rotary=1.0 if tied else 0.25), tokenizer, 16, GRID, quantizer="abc")
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    save_llm(
        model, tokenizer, tmp_path, {name: p.clone() for name, p in model.named_parameters(remove_duplicate=False)}
    )
    other = AutoModelForCausalLM.from_pretrained(str(tmp_path))
    words = AutoTokenizer.from_pretrained(str(tmp_path))
    ids = torch.tensor([[*words.encode(REPORTS[0]), 300, 315]])
    torch.testing.assert_close(other(ids).logits, model(ids).logits, rtol=0, atol=0)
    assert words.encode(REPORTS[1]) == tokenizer.encode(REPORTS[1])
    assert other.generation_config.eos_token_id == words.get_vocab()["### End"]
    loaded = load_llm(tmp_path)
    assert loaded.layout == layout_of(model, tokenizer) and loaded.layout.quantizer == "abc"
    card = (tmp_path / "README.md").read_text()
    assert "Research use only" in card and "300-315" in card
    assert (tmp_path / "model.safetensors").exists() and not list(tmp_path.glob("*.bin"))


def batch_of(rows: int, length: int, vocabulary: int, response: int) -> PackedBatch:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, vocabulary, (rows, length), generator=generator)
    labels = ids.clone()
    labels[:, : length - response] = IGNORE
    positions = torch.arange(length).expand(rows, length)
    return PackedBatch(ids, labels, positions, torch.ones_like(ids))


@pytest.mark.parametrize(
    "config",
    [
        GPTNeoXConfig(vocab_size=90, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64),
        GPT2Config(vocab_size=90, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0),
        LlamaConfig(vocab_size=90, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64),
    ],
    ids=["gpt_neox", "gpt2", "llama"],
)
@pytest.mark.parametrize("response", [5, 60])
def test_response_loss_and_gradients_equal_full_logits(config: PreTrainedConfig, response: int) -> None:
    model = text_model(config).train()
    batch = batch_of(4, 64, 90, response)
    logits = model(batch.input_ids).logits
    full = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=IGNORE)
    wanted = torch.autograd.grad(full, list(model.parameters()), allow_unused=True)
    loss = response_loss(model, batch)
    assert ResponseLossModel(model)(*batch).item() == loss.total.item()
    assert loss.tokens == 4 * response
    assert abs(loss.mean.item() - full.item()) < 1e-5
    assert loss.total.item() == pytest.approx(full.item() * loss.tokens, rel=1e-5)
    got = torch.autograd.grad(loss.mean, list(model.parameters()), allow_unused=True)
    for one, two in zip(got, wanted, strict=True):
        if two is not None:
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_response_loss_never_holds_an_eighth_of_the_logits(tokenizer: PreTrainedTokenizerBase) -> None:
    model, batch, largest = neox(500).train(), batch_of(4, 128, 500, 100), 0

    def watch(_: object, __: object, output: torch.Tensor) -> None:
        nonlocal largest
        largest = max(largest, output.shape[:-1].numel())

    head = model.get_output_embeddings()
    assert head is not None
    head.register_forward_hook(watch)
    response_loss(model, batch).mean.backward()
    assert 0 < largest <= 4 * 128 // 8


def test_response_loss_refuses_what_it_cannot_compute() -> None:
    model, batch = neox(90), batch_of(1, 16, 90, 4)
    with pytest.raises(ValueError, match="no token"):
        response_loss(model, batch._replace(labels=torch.full_like(batch.labels, IGNORE)))
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(ValueError, match=r"final_logit_softcapping=30"):
        response_loss(model, batch)
