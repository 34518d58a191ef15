"""Generation: both decoders against plain transformers, batches against single requests, and requests that fail."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from tiny_cycle import instruction_texts
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from adamatch_ray.engines import local_backend
from adamatch_ray.engines.generation import (
    Caller,
    GenerationEngine,
    GenerationSettings,
    ImageRequest,
    ReportRequest,
    settled,
    without_repeats,
)
from adamatch_ray.engines.local_backend import DecodePlan, LocalBackend, Watch, choose
from adamatch_ray.instructions import InstructionBuilder
from adamatch_ray.models import decoding
from adamatch_ray.models.decoding import NeoXSession, TransformersSession, prefill
from adamatch_ray.models.folded_neox import FoldedNeoX
from adamatch_ray.models.llm import LLMConfig, build_llm, layout_of
from adamatch_ray.models.llm_tokens import TokenLayout, train_bpe_tokenizer

REPORT = "Small left pleural effusion. The heart is mildly enlarged."
CODES = np.arange(16, dtype=np.uint16)
GREEDY = GenerationSettings(report_temperature=0, image_temperature=0, report_tokens=24)
SAMPLED = GenerationSettings(report_tokens=24, batch_size=3)
DECODERS = ["folded", "transformers"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    return train_bpe_tokenizer([REPORT, *instruction_texts()], 700, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    config = LLMConfig(name_or_path="", hidden_size=48, layers=3, heads=3, context=256, dtype="float32")
    model = build_llm(config, tokenizer, 16, (4, 4))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        # Large, distinct weights, norms and biases: small ones would hide a mistake in any of them.
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


@pytest.fixture(scope="module")
def layout(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> TokenLayout:
    return layout_of(model, tokenizer)


def engine(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: GenerationSettings,
    decoder: str = "auto",
) -> GenerationEngine:
    backend = LocalBackend(model, settings.batch_size, decoder)
    return GenerationEngine(None, tokenizer, layout_of(model, tokenizer), settings=settings, backend=backend)


def image_requests(count: int) -> list[ImageRequest]:
    return [ImageRequest(" ".join([REPORT] * (1 + i % 3)), [i, i + 1], seed=i) for i in range(count)]


def report_requests(count: int) -> list[ReportRequest]:
    words = ["effusion", "left base", "heart", "nodule"]
    return [ReportRequest((CODES + i) % 16, words[: i % 5], seed=100 + i) for i in range(count)]


@pytest.mark.parametrize("shared", [0, 4])
@pytest.mark.parametrize("lengths", [(9,), (9, 9, 9), (5, 12, 7)])
@pytest.mark.parametrize("session", [NeoXSession, TransformersSession])
def test_cached_steps_equal_the_whole_forward(
    model: PreTrainedModel, session: type, lengths: tuple[int, ...], shared: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randint(1, 500, (n,), generator=generator).tolist() for n in lengths]
    prompts = [[7, 8, 9, 11][:shared] + own for own in tokens]
    answers = torch.randint(0, 500, (len(prompts), 6), generator=generator)
    with torch.inference_mode():
        start = prefill(model, prompts)
        runner = session(FoldedNeoX(model) if session is NeoXSession else model, start, 6)
        states = [start.hidden_BH, *(runner.step(answers[:, i]) for i in range(6))]
        for row, prompt in enumerate(prompts):
            whole = torch.tensor([prompt + answers[row].tolist()])
            wanted = model(whole).logits[0, len(prompt) - 1 :]
            got = model.get_output_embeddings()(torch.stack([state[row] for state in states]))
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("session", [NeoXSession, TransformersSession])
def test_rows_that_stay_are_not_disturbed_by_rows_that_leave(model: PreTrainedModel, session: type) -> None:
    prompts = [[3, 4, 5], [3, 9, 8, 7, 6], [3, 11]]
    source = FoldedNeoX(model) if session is NeoXSession else model
    with torch.inference_mode():
        full = session(source, prefill(model, prompts), 4)
        part = session(source, prefill(model, prompts), 4)
        ids, rows = torch.tensor([20, 21, 22]), torch.tensor([2, 0])
        torch.testing.assert_close(full.step(ids), part.step(ids))
        part.keep(rows)
        for _ in range(3):
            torch.testing.assert_close(part.step(ids[rows]), full.step(ids)[rows], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("growth", [1, 5])
def test_a_cache_that_grows_as_answers_do_changes_no_token(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, growth: int
) -> None:
    plan = DecodePlan(0, 400, stop_id=3, temperature=1.0, top_p=0.9)
    prompts, limits = [[5, 6, 7 + i, *[9] * (i % 4)] for i in range(8)], [40 - 4 * i for i in range(8)]
    whole = LocalBackend(model).complete(prompts, limits, range(8), plan)
    monkeypatch.setattr(decoding, "GROWTH", growth)
    assert LocalBackend(model).complete(prompts, limits, range(8), plan) == whole
    assert max(map(len, whole)) > 5 * growth and len(set(map(len, whole))) > 3


def test_looking_less_often_at_what_has_ended_changes_no_token(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU is asked every few steps only."""
    plan = DecodePlan(0, 400, stop_id=3, temperature=1.0, top_p=0.9, no_repeat=2)
    prompts, limits = [[5, 6, 7 + i, *[9] * (i % 4)] for i in range(8)], [40 - 4 * i for i in range(8)]
    always = LocalBackend(model).complete(prompts, limits, range(8), plan)
    monkeypatch.setattr(local_backend, "READ_EVERY", {"cpu": 7})
    assert LocalBackend(model).complete(prompts, limits, range(8), plan) == always
    assert len(set(map(len, always))) > 5


@pytest.mark.parametrize("decoder", DECODERS)
def test_greedy_image_equals_transformers_generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, layout: TokenLayout, decoder: str
) -> None:
    requests = image_requests(5)
    results = engine(model, tokenizer, GREEDY, decoder).report_to_cxr(requests)
    builder = InstructionBuilder(tokenizer, layout)
    reference: Any = model
    for request, result in zip(requests, results, strict=True):
        prompt = torch.tensor([builder.image_prompt(request.report, request.keypatch_tokens)])
        plain = reference.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=16,
            eos_token_id=None,
            suppress_tokens=list(range(layout.text_size)),
        )
        assert result.status == "ok" and result.image_tokens.dtype == np.uint16
        assert result.image_tokens.tolist() == (plain[0, prompt.shape[1] :] - layout.image_start).tolist()


@pytest.mark.parametrize(("decoder", "settings"), list(product(DECODERS, [GREEDY, SAMPLED])))
def test_batched_answers_equal_single_ones(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, decoder: str, settings: GenerationSettings
) -> None:
    worker = engine(model, tokenizer, settings, decoder)
    images, reports = image_requests(7), report_requests(7)
    together, written = worker.report_to_cxr(images), worker.cxr_to_report(reports)
    for i in range(7):
        assert worker.report_to_cxr([images[i]])[0].image_tokens.tolist() == together[i].image_tokens.tolist()
        assert worker.cxr_to_report([reports[i]])[0] == written[i]
    assert len({tuple(result.image_tokens.tolist()) for result in together}) > 1


def test_seed_decides_and_image_tokens_are_image_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    worker = engine(model, tokenizer, SAMPLED)
    first, again, other = (worker.report_to_cxr([ImageRequest(REPORT, [1], seed=s)])[0] for s in (4, 4, 5))
    assert first.image_tokens.tolist() == again.image_tokens.tolist() != other.image_tokens.tolist()
    assert first.image_tokens.shape == (16,) and first.image_tokens.max() < 16


class Scripted:
    """A backend that gives prepared answers, to look at what the engine makes of them."""

    def __init__(self, *answers: list[int]) -> None:
        self.answers = list(answers)
        self.plans: list[DecodePlan] = []
        self.limits: list[int] = []

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        seeds: Sequence[int],
        plan: DecodePlan,
        watch: Watch | None = None,
    ) -> list[list[int]]:
        self.plans.append(plan)
        self.limits += limits
        return [self.answers.pop(0) for _ in prompts]


@pytest.mark.parametrize("decoder", DECODERS)
def test_answers_that_end_early_do_not_disturb_the_others(
    model: PreTrainedModel, decoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []

    def counted(logits: torch.Tensor, temperature: float, top_p: float, draws: torch.Tensor) -> torch.Tensor:
        drawn.append(len(logits))
        return choose(logits, temperature, top_p, draws)

    monkeypatch.setattr(local_backend, "choose", counted)
    backend = LocalBackend(model, 9, decoder)
    plan = DecodePlan(0, 12, stop_id=3, temperature=50.0, top_p=1.0)
    prompts = [[5, 6, 7 + i % 3] + [9] * (i % 4) for i in range(9)]
    limits = [30 - i for i in range(9)]
    together = backend.complete(prompts, limits, range(9), plan)
    needed = sum(map(len, together))
    assert max(map(len, together)) == len(drawn), "decoding went on after the last row had ended"
    assert needed <= sum(drawn) < 2 * needed + 9, "rows that had ended were decoded further"
    alone = [backend.complete([prompts[i]], [limits[i]], [i], plan)[0] for i in range(9)]
    assert together == alone
    assert len(set(map(len, together))) > 3
    for answer, limit in zip(together, limits, strict=True):
        assert len(answer) <= limit and 3 not in answer[:-1] and max(answer) < 12
        assert answer[-1] == 3 or len(answer) == limit


def test_reports_end_at_the_end_key_or_say_so(tokenizer: PreTrainedTokenizerBase, layout: TokenLayout) -> None:
    words = tokenizer.encode(REPORT + "\n\n")
    backend = Scripted([*words, layout.end_id], words)
    worker = GenerationEngine(None, tokenizer, layout, backend=backend)
    ended, cut = worker.cxr_to_report(report_requests(2))
    assert (ended.text, ended.status) == (REPORT, "ok")
    assert cut.text == REPORT and cut.status.startswith(f"truncated: no end of report within {len(words)} tokens")
    assert backend.plans[0].end_id == layout.text_size and backend.plans[0].stop_id == layout.end_id
    assert all(limit < 256 for limit in backend.limits)


@pytest.mark.parametrize("drop", [True, False])
def test_what_is_told_of_a_report_is_its_beginning(drop: bool) -> None:
    texts = [
        "Heart size is normal. No effusion.  heart size IS normal. Heart size is large. No effusion. No effusion",
        "No edema. No edema is seen. No edema.\n\nNo",
        " A. a. A a. A a b. A ",
        "",
    ]
    for text in texts:
        whole = without_repeats(text.strip()) if drop else text.strip()
        told = [settled(text[:end], drop) for end in range(len(text) + 1)]
        assert all(whole.startswith(later) and later.startswith(told[max(n - 1, 0)]) for n, later in enumerate(told))
    said = "Heart size is normal. Heart size is "
    assert settled(said, True) == "Heart size is normal." and settled(said, False) == said.strip()
    assert settled(said + "large ", True) == said + "large", "it says something else: it is told at once"


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_caller_hears_words_as_they_come_and_costs_nothing_once_gone(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, decoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []

    def counted(logits: torch.Tensor, temperature: float, top_p: float, draws: torch.Tensor) -> torch.Tensor:
        rows.append(len(draws))
        return choose(logits, temperature, top_p, draws)

    monkeypatch.setattr(local_backend, "choose", counted)
    settings = GenerationSettings(report_tokens=24, image_guidance=2.0)
    worker = engine(model, tokenizer, settings, decoder)
    alone = worker.cxr_to_report(report_requests(4))
    heard: list[list[str]] = [[] for _ in range(4)]
    callers = [Caller(own.append) for own in heard]
    asked = [request._replace(caller=caller) for request, caller in zip(report_requests(4), callers, strict=True)]
    assert worker.cxr_to_report(asked) == alone
    for told, result in zip(heard, alone, strict=True):
        assert len(told) == len(result.token_ids) and len(set(told)) > 3
        assert all(result.text.startswith(text) for text in told)

    def leave(text: str) -> None:
        callers[1].gone = callers[2].gone = callers[3].gone = len(heard[1]) > 8

    callers[3].hear = leave
    for told in heard:
        told.clear()
    rows.clear()
    assert worker.cxr_to_report(asked)[0] == alone[0]
    assert max(map(len, heard[1:])) < 12 and rows[-1] == 1, "rows of those who left were decoded further"

    images = image_requests(3)
    drawn = worker.report_to_cxr(images)
    rows.clear()
    left = [request._replace(caller=Caller(gone=n > 0)) for n, request in enumerate(images)]
    assert worker.report_to_cxr(left)[0].image_tokens.tolist() == drawn[0].image_tokens.tolist()
    assert rows == [3, *[1] * 15]
    rows.clear()
    worker.report_to_cxr([request._replace(caller=Caller(gone=True)) for request in images])
    assert rows == [3], "the batch ends with the last of its callers"


def test_failed_requests_keep_their_place(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, layout: TokenLayout
) -> None:
    worker = engine(model, tokenizer, GREEDY)
    good = ImageRequest(REPORT, [1])
    results = worker.report_to_cxr([ImageRequest("effusion " * 10_000), good, ImageRequest(REPORT, [999])])
    assert [result.status[:6] for result in results] == ["error:", "ok", "error:"]
    assert "tokens and an answer of 16 exceed the context of 256" in results[0].status
    assert "code 999" in results[2].status and results[2].image_tokens.size == 0
    assert results[1].image_tokens.tolist() == worker.report_to_cxr([good])[0].image_tokens.tolist()
    reports = worker.cxr_to_report([ReportRequest(CODES[:9]), ReportRequest(CODES)])
    assert reports[0].status.startswith("error: an image of 9 codes") and reports[0].text == ""
    assert not reports[1].status.startswith("error")
    assert worker.report_to_cxr([]) == [] and worker.cxr_to_report([]) == []


def test_beams_stay_within_text_and_repeat(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, layout: TokenLayout
) -> None:
    request = report_requests(1)
    beams = GenerationSettings(beams=4, report_tokens=6)
    found = engine(model, tokenizer, beams).cxr_to_report(request)[0]
    assert 0 < len(found.token_ids) <= 6 and max(found.token_ids) < layout.text_size
    assert found == engine(model, tokenizer, beams).cxr_to_report(request)[0]
    few = DecodePlan(0, 12, stop_id=3, temperature=1.0, top_p=1.0, beams=3)
    answers = LocalBackend(model).complete([[5, 6], [7, 8, 9]], [6, 4], [0, 0], few)
    assert all(0 < len(answer) <= limit and max(answer) < 12 for answer, limit in zip(answers, [6, 4], strict=True))


def test_other_causal_models_generate_too(tokenizer: PreTrainedTokenizerBase) -> None:
    torch.manual_seed(0)
    gpt2 = AutoModelForCausalLM.from_config(
        GPT2Config(vocab_size=len(tokenizer) + 16, n_embd=32, n_layer=2, n_head=2, n_positions=256)
    ).eval()
    gpt2.config.image_codes, gpt2.config.image_grid = 16, [4, 4]
    worker = engine(gpt2, tokenizer, GREEDY)
    single = [worker.report_to_cxr([request])[0].image_tokens.tolist() for request in image_requests(4)]
    assert single == [result.image_tokens.tolist() for result in worker.report_to_cxr(image_requests(4))]


def test_folding_refuses_what_it_cannot_fold() -> None:
    sequential = GPTNeoXConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        use_parallel_residual=False,
    )
    model = AutoModelForCausalLM.from_config(sequential)
    with pytest.raises(ValueError, match="residual is not parallel"):
        LocalBackend(model, decoder="folded")
    LocalBackend(model, decoder="auto")


def test_engine_refuses_a_model_of_other_rows(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    other = TokenLayout(len(tokenizer), 1024, (16, 16), 2, 1, context=256)
    with pytest.raises(ValueError, match=r"model has \d+ rows, the layout \d+"):
        GenerationEngine(model, tokenizer, other)
    with pytest.raises(ValueError, match="needs a model"):
        GenerationEngine(None, tokenizer, other)


def test_choose_follows_the_distribution_and_top_p() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(4000, 4)
    draws = torch.rand(4000, generator=torch.Generator().manual_seed(0))
    share = torch.bincount(choose(logits, 1.0, 1.0, draws), minlength=4) / 4000
    torch.testing.assert_close(share, torch.tensor([0.5, 0.3, 0.15, 0.05]), rtol=0, atol=0.02)
    nucleus = torch.bincount(choose(logits, 1.0, 0.7, draws), minlength=4) / 4000
    torch.testing.assert_close(nucleus, torch.tensor([0.625, 0.375, 0, 0]), rtol=0, atol=0.02)
    assert choose(logits[:1], 1.0, 1e-9, torch.tensor([0.9999999])).tolist() == [0]
    assert choose(logits[:1], 0.0, 1.0, torch.tensor([0.99])).tolist() == [0]
    assert choose(torch.tensor([[0.0, -1e9, -1e9]]), 1.0, 1.0, torch.tensor([0.99999994])).tolist() == [0]


@pytest.mark.parametrize("sharpness", [3.0, 5.0])
def test_a_nucleus_is_sorted_out_of_its_likeliest_candidates_bit_for_bit(
    sharpness: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many logits are equal, as in bf16: of those the first comes first, whoever is sorted."""
    generator = torch.Generator().manual_seed(1)
    logits = (sharpness * torch.randn(64, 20_000, generator=generator)).bfloat16()
    draws = torch.rand(64, generator=generator)
    few = choose(logits, 1.0, 0.92, draws)
    monkeypatch.setattr(local_backend, "NUCLEUS", 20_000)
    whole = choose(logits, 1.0, 0.92, draws)
    assert torch.equal(few, whole) and len(set(whole.tolist())) > 30


def test_repeats_are_forbidden_as_they_are_counted() -> None:
    """Against lists: of each answer, the tokens that have followed its last two before, but the one that ends it."""
    generator = torch.Generator().manual_seed(0)
    plan = DecodePlan(5, 11, stop_id=7, temperature=1.0, top_p=1.0, no_repeat=3)
    for length in (2, 3, 40):
        answers, logits = torch.randint(5, 11, (6, length), generator=generator), torch.randn(6, 6, generator=generator)
        wanted = logits.clone()
        for row, answer in zip(wanted, answers.tolist(), strict=True):
            for i in range(length - 2):
                if answer[i : i + 2] == answer[-2:] and answer[i + 2] != 7:
                    row[answer[i + 2] - 5] = -torch.inf
        local_backend._forbid_repeats(logits, answers, plan)
        assert torch.equal(logits, wanted) and bool(wanted.isinf().any()) == (length == 40)
