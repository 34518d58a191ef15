"""Image positions, guidance and repeats: what decoding draws is what the whole forward says, in batches and alone."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from adamatch_ray.engines.generation import (
    GenerationEngine,
    GenerationSettings,
    ImageRequest,
    ReportRequest,
    without_repeats,
)
from adamatch_ray.engines.local_backend import DecodePlan, LocalBackend
from adamatch_ray.instructions import Example, InstructionBuilder, Overlength, in_order_told
from adamatch_ray.model_config import InstructionConfig, LLMConfig
from adamatch_ray.models.image_positions import ImagePositions, embed_tokens, image_cells, positions_of
from adamatch_ray.models.llm import POSITIONS, build_llm, layout_of, load_llm, save_llm
from adamatch_ray.models.llm_tokens import train_bpe_tokenizer

REPORT = "Small left pleural effusion. The heart is mildly enlarged."
CODES = np.arange(16, dtype=np.uint16)
CONFIG = LLMConfig(
    name_or_path="", hidden_size=48, layers=2, heads=3, context=640, dtype="float32", image_positions=True
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    return train_bpe_tokenizer([REPORT], 300, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A model whose positions and other weights are large enough to show a mistake in any of them."""
    model = build_llm(CONFIG, tokenizer, 16, (4, 4))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def engine(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> GenerationEngine:
    made = GenerationSettings(**{"image_temperature": 0.0, "report_tokens": 24, **settings})
    backend = LocalBackend(model, made.batch_size, made.decoder)
    return GenerationEngine(None, tokenizer, layout_of(model, tokenizer), settings=made, backend=backend)


def test_only_whole_images_have_cells() -> None:
    ids = torch.tensor([[9, 5, 5, 1, 5, 6, 7, 8, 2, 5], [5, 5, 5, 5, 1, 1, 5, 5, 5, 1]])
    assert image_cells(ids, 5, 4).tolist() == [
        [-1, -1, -1, -1, 0, 1, 2, 3, -1, -1],
        [0, 1, 2, 3, -1, -1, -1, -1, -1, -1],
    ]


def test_a_new_model_is_unchanged_until_it_is_tuned(tokenizer: PreTrainedTokenizerBase) -> None:
    model = build_llm(CONFIG, tokenizer, 16, (4, 4))
    ids = torch.arange(layout_of(model, tokenizer).vocab_size)[None]
    assert torch.equal(embed_tokens(model, ids), model.get_input_embeddings()(ids))
    positions = positions_of(model)
    assert isinstance(positions, ImagePositions) and not any(p.any() for p in positions.parameters())


@pytest.mark.parametrize("decoder", ["folded", "transformers"])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_images_follow_positions_and_guidance_step_by_step(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, decoder: str, guidance: float
) -> None:
    """Greedy tokens of a batch against whole forwards of prompt and answer so far, of both prompts."""
    requests = [ImageRequest(REPORT, [1, 2, 3], 0), ImageRequest("The heart is large.", (), 1)]
    drawn = engine(model, tokenizer, image_guidance=guidance, decoder=decoder).report_to_cxr(requests)
    layout = layout_of(model, tokenizer)
    builder = InstructionBuilder(tokenizer, layout)
    for request, result in zip(requests, drawn, strict=True):
        logs = []
        for prompt in (builder.image_prompt(request.report, request.keypatch_tokens), builder.image_prompt("", ())):
            answer = torch.from_numpy(result.image_tokens.astype(np.int64)) + layout.image_start
            ids = torch.cat([torch.tensor(prompt), answer])[None]
            with torch.inference_mode():
                # Cells are counted in whole images: the last token completes this one.
                hidden = model.base_model(inputs_embeds=embed_tokens(model, ids)).last_hidden_state
                logits = model.get_output_embeddings()(hidden)[0, len(prompt) - 1 : -1, layout.image_start :]
            logs.append(logits.log_softmax(-1))
        guided = logs[1] + guidance * (logs[0] - logs[1])
        assert guided.argmax(-1).tolist() == result.image_tokens.tolist()


def test_guided_batches_equal_single_requests(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    requests = [ImageRequest(" ".join([REPORT] * (1 + i % 3)), [i], seed=i) for i in range(5)]
    guided = engine(model, tokenizer, image_guidance=2.0, image_temperature=1.0, image_top_p=0.9, batch_size=3)
    alone = [guided.report_to_cxr([request])[0].image_tokens.tolist() for request in requests]
    assert [result.image_tokens.tolist() for result in guided.report_to_cxr(requests)] == alone


def test_no_sequence_comes_twice_where_that_is_asked(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    prompts, limits = [[5, 6, 7 + i] for i in range(4)], [60] * 4
    free = LocalBackend(model).complete(prompts, limits, range(4), DecodePlan(0, 12, None, 0.0, 1.0))
    once = LocalBackend(model).complete(prompts, limits, range(4), DecodePlan(0, 12, None, 0.0, 1.0, no_repeat=3))

    def repeats(answer: list[int]) -> int:
        parts = [tuple(answer[i : i + 3]) for i in range(len(answer) - 2)]
        return len(parts) - len(set(parts))

    assert max(map(repeats, free)) > 0 and not any(map(repeats, once))


def test_positions_survive_saving_and_their_file_is_asked_for(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    save_llm(model, tokenizer, tmp_path / "llm")
    loaded = load_llm(tmp_path / "llm")
    assert POSITIONS in (tmp_path / "llm" / "README.md").read_text()
    requests = [ReportRequest(CODES, ["heart"], 0), ReportRequest(CODES[::-1], (), 1)]
    wanted = engine(model, tokenizer, report_temperature=0.0).cxr_to_report(requests)
    assert engine(loaded.model, loaded.tokenizer, report_temperature=0.0).cxr_to_report(requests) == wanted
    # Others load the folder without this package, and without the positions.
    assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path / "llm"), PreTrainedModel)
    tuned_on = build_llm(LLMConfig(name_or_path=str(tmp_path / "llm"), image_positions=True), tokenizer, 16, (4, 4))
    assert positions_of(tuned_on) is not None
    (tmp_path / "llm" / POSITIONS).unlink()
    with pytest.raises(ValueError, match=f"{POSITIONS} is missing"):
        load_llm(tmp_path / "llm")


def ids_of(lesson: Example | Overlength) -> list[int]:
    assert isinstance(lesson, Example)
    return lesson.input_ids.tolist()


def test_lessons_leave_out_what_the_configuration_says(tokenizer: PreTrainedTokenizerBase) -> None:
    layout = layout_of(build_llm(CONFIG, tokenizer, 16, (4, 4)), tokenizer)
    builder = InstructionBuilder(tokenizer, layout, InstructionConfig(image_from=1, keyword_dropout=0.5))
    plain = InstructionBuilder(tokenizer, layout)
    names = [f"s{i}" for i in range(40)]

    def lessons(epoch: int) -> list[list[int]]:
        return [ids_of(builder.report_lesson(name, epoch, CODES, ["heart"], REPORT)) for name in names]

    def holds_image(ids: list[int]) -> bool:
        return bool((image_cells(torch.tensor([ids]), layout.image_start, layout.image_tokens) >= 0).any())

    assert not any(map(holds_image, lessons(epoch=0))) and all(map(holds_image, lessons(epoch=1)))
    assert lessons(epoch=1) == lessons(epoch=1) != lessons(epoch=2)
    without = [ids_of(plain.report_example(name, 1, CODES, (), REPORT)) for name in names]
    left_out = sum(a == b for a, b in zip(lessons(epoch=1), without, strict=True))
    assert 10 < left_out < 30


def test_now_and_then_an_image_is_drawn_from_nothing(tokenizer: PreTrainedTokenizerBase) -> None:
    layout = layout_of(build_llm(CONFIG, tokenizer, 16, (4, 4)), tokenizer)
    builder = InstructionBuilder(tokenizer, layout, InstructionConfig(prompt_dropout=0.5))
    drawn = [ids_of(builder.image_lesson(f"s{i}", 0, REPORT, [1], CODES)) for i in range(40)]
    empty = [ids_of(builder.image_example(f"s{i}", 0, "", (), CODES)) for i in range(40)]
    assert 10 < sum(a == b for a, b in zip(drawn, empty, strict=True)) < 30


def test_keywords_follow_the_report_that_is_learnt() -> None:
    class Hint(NamedTuple):
        text: str
        probability: float = 1.0
        place: str = ""

    hints = [Hint("cardiomegaly"), Hint("rib fracture"), Hint("pleural effusion"), Hint("nodule")]
    report = "Right lower nodule. Large left effusion. Displaced fracture of a rib. Mild cardiomegaly."
    assert [hint.text for hint in in_order_told(hints, report)] == [
        "nodule", "pleural effusion", "rib fracture", "cardiomegaly",
    ]  # fmt: skip


def test_a_sentence_is_said_once() -> None:
    report = "Small left effusion. Heart size is normal. Small  left effusion. No edema. small left effusion."
    assert without_repeats(report) == "Small left effusion. Heart size is normal. No edema."
    assert without_repeats("A 2.5 cm nodule. A 2.6 cm nodule.") == "A 2.5 cm nodule. A 2.6 cm nodule."
