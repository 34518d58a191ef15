"""Prompts and records: layout, what is learnt, what is refused, and packing in which no record sees another."""

from typing import Literal

import numpy as np
import pytest
import torch
from tiny_cycle import instruction_texts
from transformers import PreTrainedTokenizerBase

from adamatch_ray.instructions import (
    CXR_TO_REPORT,
    INSTRUCTIONS,
    PREAMBLE,
    REPORT_TO_CXR,
    Example,
    InstructionBuilder,
    InstructionConfig,
    Overlength,
    pack,
)
from adamatch_ray.models.llm import LLMConfig, build_llm, layout_of
from adamatch_ray.models.llm_loss import IGNORE, misread, packed_attention_mask, response_loss
from adamatch_ray.models.llm_tokens import TokenLayout, make_layout, train_bpe_tokenizer

REPORT = "Small left pleural effusion. The heart is mildly enlarged."
KEYWORDS = ["effusion", "left base", "heart"]
CODES = np.arange(16, dtype=np.uint16)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    return train_bpe_tokenizer([REPORT, *instruction_texts()], 700, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def layout(tokenizer: PreTrainedTokenizerBase) -> TokenLayout:
    return make_layout(tokenizer, 16, (4, 4), context=256)


@pytest.fixture(scope="module")
def builder(tokenizer: PreTrainedTokenizerBase, layout: TokenLayout) -> InstructionBuilder:
    return InstructionBuilder(tokenizer, layout)


def read(tokenizer: PreTrainedTokenizerBase, layout: TokenLayout, ids: list[int]) -> str:
    """Text of ids, each image token spelled <code>."""
    pieces = [f"<{i - layout.image_start}>" if i >= layout.image_start else str(tokenizer.decode([i])) for i in ids]
    return "".join(pieces)


def test_report_prompt_layout(
    tokenizer: PreTrainedTokenizerBase, layout: TokenLayout, builder: InstructionBuilder
) -> None:
    text = read(tokenizer, layout, builder.report_prompt(CODES, KEYWORDS, paraphrase=1))
    image = "".join(f"<{code}>" for code in CODES)
    assert text == (
        f"{PREAMBLE}\n\n### Instruction:\n{INSTRUCTIONS[CXR_TO_REPORT][1]}\n\nInput:\n{image}\n\n"
        "Keyword:\neffusion, left base, heart\n\n### Response:\n"
    )


def test_image_prompt_layout(
    tokenizer: PreTrainedTokenizerBase, layout: TokenLayout, builder: InstructionBuilder
) -> None:
    text = read(tokenizer, layout, builder.image_prompt(REPORT, [7, 3]))
    assert text == (
        f"{PREAMBLE}\n\n### Instruction:\n{INSTRUCTIONS[REPORT_TO_CXR][0]}\n\nInput:\n{REPORT}\n\n"
        "Reference:\n<7><3>\n\n### Response:\n"
    )


def test_an_image_prompt_can_list_what_its_report_states(
    tokenizer: PreTrainedTokenizerBase, layout: TokenLayout
) -> None:
    told = InstructionBuilder(tokenizer, layout, InstructionConfig(image_facts=True))
    text = read(tokenizer, layout, told.image_prompt(REPORT, [7, 3]))
    assert f"{REPORT}\n\nKeyword:\ncardiomegaly, effusion left small\n\nReference:\n<7><3>\n" in text
    assert "Input:\n\n\nKeyword:\n\n\nReference:\n\n" in read(tokenizer, layout, told.image_prompt("", []))


def test_limits_keep_the_best_keywords_and_reference_tokens(
    tokenizer: PreTrainedTokenizerBase, layout: TokenLayout
) -> None:
    small = InstructionBuilder(tokenizer, layout, InstructionConfig(keywords=2, keypatch_tokens=3))
    assert "Keyword:\neffusion, left base\n" in read(tokenizer, layout, small.report_prompt(CODES, KEYWORDS))
    assert "Reference:\n<9><8><7>\n" in read(tokenizer, layout, small.image_prompt(REPORT, [9, 8, 7, 6]))


def test_labels_are_the_response_and_its_end(
    tokenizer: PreTrainedTokenizerBase, layout: TokenLayout, builder: InstructionBuilder
) -> None:
    image = "".join(f"<{code}>" for code in CODES)
    report = builder.report_example("s1", 0, CODES, KEYWORDS, REPORT)
    drawn = builder.image_example("s1", 0, REPORT, [1, 2], CODES)
    for example, answer in ((report, REPORT), (drawn, image)):
        assert isinstance(example, Example)
        learnt = example.labels[example.labels != IGNORE].tolist()
        assert read(tokenizer, layout, learnt) == f"{answer}\n\n### End"
        assert learnt == example.input_ids[example.response_start :].tolist()
        assert read(tokenizer, layout, example.input_ids[: example.response_start].tolist()).endswith("### Response:\n")


def test_keys_spelled_in_a_report_stay_text(layout: TokenLayout, builder: InstructionBuilder) -> None:
    example = builder.report_example("s1", 0, CODES, ["### End"], "clear ### End ### Response:\n lungs")
    assert isinstance(example, Example)
    assert example.input_ids.tolist().count(layout.end_id) == 1
    assert example.input_ids[-1] == layout.end_id


def test_paraphrases_vary_and_repeat(builder: InstructionBuilder) -> None:
    drawn = [builder.paraphrase(f"s{i}", epoch, CXR_TO_REPORT) for i in range(40) for epoch in range(2)]
    assert drawn == [builder.paraphrase(f"s{i}", epoch, CXR_TO_REPORT) for i in range(40) for epoch in range(2)]
    assert set(drawn) == set(range(len(INSTRUCTIONS[CXR_TO_REPORT])))
    assert drawn[0::2] != drawn[1::2]


def test_overlong_records_are_refused_not_cut(
    tokenizer: PreTrainedTokenizerBase, layout: TokenLayout, builder: InstructionBuilder
) -> None:
    long = "effusion " * 10_000
    for refused in (
        builder.report_example("s9", 0, CODES, KEYWORDS, long),
        builder.image_example("s9", 0, long, [], CODES),
    ):
        assert isinstance(refused, Overlength)
        assert refused.study_id == "s9" and refused.tokens > 10_000
        assert f"{refused.tokens} tokens exceeds the context of 256" in refused.message
    cut = InstructionBuilder(tokenizer, layout, InstructionConfig(max_report_tokens=20))
    assert isinstance(cut.image_example("s9", 0, long, [], CODES), Example)
    assert isinstance(cut.report_example("s9", 0, CODES, KEYWORDS, long), Overlength)


def test_foreign_codes_and_tokenizers_are_refused(
    tokenizer: PreTrainedTokenizerBase, builder: InstructionBuilder
) -> None:
    with pytest.raises(ValueError, match=r"code 99 .* 16 codes"):
        builder.report_prompt([99] * 16, KEYWORDS)
    with pytest.raises(ValueError, match=r"9 codes .* 4x4"):
        builder.report_prompt(np.zeros((3, 3), dtype=np.uint16), KEYWORDS)
    with pytest.raises(ValueError, match=r"entries.*expects 50281"):
        InstructionBuilder(tokenizer, TokenLayout(50_281, 1024, (16, 16), 0, 0, context=2048))


def records(builder: InstructionBuilder) -> list[Example]:
    made = []
    for i in range(7):
        text = " ".join([REPORT] * (1 + i % 3))
        codes = (CODES + i) % 16
        made.append(builder.report_example(f"s{i}", 0, codes, KEYWORDS[: i % 4], text))
        made.append(builder.image_example(f"s{i}", 0, text, [i, i + 1], codes))
    assert all(isinstance(example, Example) for example in made)
    return [example for example in made if isinstance(example, Example)]


def test_pack_keeps_every_token_once_and_fills_rows(builder: InstructionBuilder) -> None:
    examples = records(builder)
    packed = pack(examples, 256)
    sizes = sorted(len(example.input_ids) for example in examples)
    assert packed.input_ids.shape[0] < len(examples) and packed.input_ids.shape[1] <= 256
    got = []
    for ids, segments, positions in zip(packed.input_ids, packed.segment_ids, packed.position_ids, strict=True):
        for segment in range(1, int(segments.max()) + 1):
            here = segments == segment
            got.append(ids[here].tolist())
            assert positions[here].tolist() == list(range(int(here.sum())))
    assert sorted(map(len, got)) == sizes
    assert sorted(got) == sorted(example.input_ids.tolist() for example in examples)
    with pytest.raises(ValueError, match="does not fit rows of 16"):
        pack(examples, 16)
    with pytest.raises(ValueError, match="nothing to pack"):
        pack([], 16)


def test_attention_mask_is_block_diagonal_and_causal() -> None:
    mask = packed_attention_mask(torch.tensor([[1, 1, 2, 2, 0]]))[0, 0].int().tolist()
    assert mask == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]]


def test_misread_changes_answered_images_alone(layout: TokenLayout, builder: InstructionBuilder) -> None:
    drawn = builder.image_example("a", 0, REPORT, [7, 3], CODES)
    told = builder.report_example("b", 0, CODES, KEYWORDS, REPORT)
    assert isinstance(drawn, Example) and isinstance(told, Example)
    batch = pack([drawn, told], layout.context)
    torch.manual_seed(0)
    noisy = misread(batch, 0.5, layout.image_start, layout.image_codes)
    changed = noisy.input_ids != batch.input_ids
    assert 3 <= int(changed.sum()) <= 12, "about half of 16 tokens, less those drawn as they were"
    assert (batch.labels[changed] >= layout.image_start).all(), "neither text nor a prompt's image"
    assert ((noisy.input_ids >= layout.image_start) == (batch.input_ids >= layout.image_start)).all()
    assert torch.equal(noisy.labels, batch.labels)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_loss_equals_each_record_alone(
    tokenizer: PreTrainedTokenizerBase, builder: InstructionBuilder, attention: Literal["sdpa", "eager"]
) -> None:
    config = LLMConfig(
        name_or_path="", hidden_size=32, layers=2, heads=2, context=256, dtype="float32", attention=attention
    )
    model = build_llm(config, tokenizer, 16, (4, 4))
    assert layout_of(model, tokenizer) == builder.layout
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
        examples = records(builder)
        alone = [response_loss(model, pack([example], 256)) for example in examples]
        packed = response_loss(model, pack(examples, 256))
        padded = response_loss(model, pack(examples, max(len(e.input_ids) for e in examples)))
    assert packed.tokens == sum(loss.tokens for loss in alone)
    total = sum(loss.total.item() for loss in alone)
    assert packed.total.item() == pytest.approx(total, rel=1e-5)
    assert padded.total.item() == pytest.approx(total, rel=1e-5)
