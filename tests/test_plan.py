"""The plan: the models count themselves, as published; bytes and hours are those of a calculator, or measured."""

import gc
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, GPTNeoXConfig

from adamatch_ray import counting
from adamatch_ray import plan as planning
from adamatch_ray.config import load_config
from adamatch_ray.engines.local_backend import DecodePlan, LocalBackend
from adamatch_ray.model_config import LLMConfig, PVTConfig, TextEncoderConfig, VQGANConfig
from adamatch_ray.models.adamatch import AdaMatchSizes
from adamatch_ray.models.pvt import PyramidVisionTransformer
from adamatch_ray.models.vqgan import VQGAN
from adamatch_ray.stage_plans import PLANS, decoding_bytes, plan_stage, zero_bytes

A100 = planning.HARDWARE["a100-40gb"]
MIMIC = load_config("mimic_cxr")
COUNTS = planning.expected_counts(MIMIC)


@pytest.mark.parametrize(
    ("config", "known"),
    [
        (PVTConfig(num_classes=1000, adapatch_stages=()), 44_208_104),
        (PVTConfig(num_classes=1000), 46_131_758),
    ],
)
def test_the_image_encoder_has_its_published_parameters(config: PVTConfig, known: int) -> None:
    with torch.device("meta"):
        assert counting.parameters(PyramidVisionTransformer(config)) == known
    # 14 findings instead of 1,000 classes
    assert counting.encoder(config).parameters == known - 986 * 513


def test_published_sizes_are_those_of_the_papers() -> None:
    dolly = counting.language_model(LLMConfig(), 1024)
    assert dolly.shape.vocab_size == 51_305
    # 32 layers of 12 x 2560^2 + 13 x 2560, twice 51,305 rows of 2,560, a norm
    assert dolly.parameters == 32 * 78_676_480 + 2 * 51_305 * 2_560 + 5_120 == 2_780_334_080
    assert dolly.matrices == 32 * 12 * 2560**2 and dolly.ends == 2 * 51_305 * 2_560
    assert dolly.adapters == 16 * 2_560 * 32 and dolly.cached == 2 * 32 * 2_560
    # in: query, key, value, a quarter of two of them turned, MLP; out: attention and MLP; and their biases
    assert dolly.folded == 32 * (2_560 * (3.5 + 4) * 2_560 + 5 * 2_560**2 + 8.5 * 2_560)
    clinical = counting.known_config("emilyalsentzer/Bio_ClinicalBERT")
    assert (clinical.hidden_size, clinical.num_hidden_layers, clinical.vocab_size) == (768, 12, 28_996)
    image, text = counting.adamatch(AdaMatchSizes(PVTConfig(), TextEncoderConfig(), MIMIC.adamatch), 102)
    assert text.parameters == 107_719_680 + 769 * 256 + 1, "Bio_ClinicalBERT, the words' projection, the temperature"
    assert image.parameters == 45_618_758 + 2 * 320 + 321 * 256


def test_tied_ends_are_counted_once() -> None:
    config = LLMConfig(name_or_path="", hidden_size=16, layers=2, heads=2, vocab_size=90, context=32)
    loose, tied = (counting.language_model(replace(config, tied=tied), 10) for tied in (False, True))
    assert loose.parameters - tied.parameters == 100 * 16 == tied.ends


def test_sizes_come_from_a_local_folder(tmp_path: Path) -> None:
    GPTNeoXConfig(
        vocab_size=90, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64
    ).save_pretrained(tmp_path)
    model = counting.language_model(LLMConfig(name_or_path=str(tmp_path)), 10)
    assert (model.shape.vocab_size, model.shape.num_hidden_layers, model.shape.hidden_size) == (100, 3, 16)
    with pytest.raises(ValueError, match=r"sizes of .*nowhere are not known here; name a local or s3:// folder"):
        counting.known_config(str(tmp_path / "nowhere"))


def test_the_vqgan_is_counted_as_it_computes() -> None:
    encode, decode = counting.vqgan(VQGANConfig())
    assert round(encode.parameters / 1e6, 1) == 72.1
    assert round(encode.operations / 1e9) in (138, 139)
    assert round(decode.operations / 1e9) == 253
    with torch.device("meta"):
        model = VQGAN(VQGANConfig())
        image, latent = torch.zeros(1, 3, 256, 256), torch.zeros(1, 256, 16, 16)
        distances = 2 * 256 * 1024 * 256
        assert encode.operations == distances + counting.operations(lambda: model.quant_conv(model.encoder(image)))
        assert decode.operations == counting.operations(lambda: model.decode(latent))


def test_a_model_costs_what_it_did_by_hand() -> None:
    """Numbers of the arithmetic that restated every layer, before the models counted themselves."""
    image, text = counting.adamatch(AdaMatchSizes(MIMIC.image, MIMIC.text, MIMIC.adamatch), 102)
    assert image.operations == pytest.approx(12.555_440_128e9, rel=0.01)
    assert text.operations == pytest.approx(17.710_202_880e9, rel=0.01)
    assert counting.encoder(MIMIC.image).operations == pytest.approx(13_723_451_392, rel=1e-5)
    assert counting.vqgan(VQGANConfig())[0].operations == 138_563_026_944
    assert counting.vqgan(VQGANConfig())[1].operations == 252_748_759_040
    assert counting.finder("d4data/biomedical-ner-all", 102).operations == 8_855_101_440
    # 6.7 G multiply-adds is what is published of PVT-medium at 224 pixels
    assert counting.encoder(PVTConfig(adapatch_stages=())).operations / 2 == pytest.approx(6.7e9, rel=0.02)
    assert [PVTConfig().grid(stage) ** 2 for stage in (1, 2, 3, 4)] == [3136, 784, 196, 49]


def test_what_a_layer_keeps_is_what_it_needs_for_its_gradient() -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    assert counting.kept(layer, lambda: layer(torch.zeros(5, 8))) == 5 * 8 + 5 * 32


class LiveBytes(TorchDispatchMode):
    """Adds up the storages of all tensors that operations make, for as long as anybody holds them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, count = id(storage), storage.nbytes()
        if key in self._storages:
            return

        def gone(_: object) -> None:
            self.now -= count
            del self._storages[key]

        self._storages[key] = weakref.ref(storage, gone)
        self.now += count
        self.most = max(self.most, self.now)


@pytest.mark.parametrize("decoder", ["folded", "transformers"])
@pytest.mark.parametrize(("rows", "prompt", "answer"), [(16, 100, 130), (4, 40, 300), (32, 300, 20)])
def test_generation_holds_as_much_memory_as_planned(decoder: str, rows: int, prompt: int, answer: int) -> None:
    config = LLMConfig(name_or_path="", hidden_size=128, layers=4, heads=4, vocab_size=500, context=512)
    planned = decoding_bytes(counting.language_model(config, 100), rows, prompt, answer, 4, decoder == "folded")
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(1, 500, (rows, prompt), generator=generator).tolist()
    with LiveBytes() as live:
        model = AutoModelForCausalLM.from_config(counting.llm_shape(config, 100)).eval()
        gc.collect()
        assert live.now == pytest.approx(planned.weights, rel=0.01)
        backend = LocalBackend(model, rows, decoder)
        live.most = live.now
        backend.complete(prompts, [answer] * rows, range(rows), DecodePlan(0, 600, None, 1.0, 0.9))
        left = live.now - planned.weights - planned.folded
    assert live.most == pytest.approx(planned.most, rel=0.15)
    assert left < planned.weights / 100, "nothing of a batch is held when it is answered"


def test_rows_that_leave_do_not_copy_the_cache_as_a_whole() -> None:
    config = LLMConfig(name_or_path="", hidden_size=128, layers=4, heads=4, vocab_size=500, context=512)
    planned = decoding_bytes(counting.language_model(config, 100), 16, 300, 60, 4, folds=True)
    prompts = torch.randint(1, 500, (16, 300), generator=torch.Generator().manual_seed(0)).tolist()
    with LiveBytes() as live:
        backend = LocalBackend(AutoModelForCausalLM.from_config(counting.llm_shape(config, 100)).eval(), 16)
        live.most = 0
        backend.complete(prompts, [2] * 9 + [60] * 7, range(16), DecodePlan(0, 600, 1, 1.0, 1.0))
    assert live.most <= 1.05 * planned.most


def test_the_plan_of_generation_holds_every_term() -> None:
    """64 prompts of 356 tokens, answers of up to 512, 327,680 bytes a token: what no longer fits is said."""
    plan = plan_stage("generations", MIMIC, COUNTS, A100)
    cache = 64 * (356 + 512) * 327_680
    others = 4 * (45_701_574 + 107_916_545 + 72_141_699)
    assert plan.worker_bytes == pytest.approx(5_560_668_160 + cache + cache / 64 + others + 1.5e9, rel=1e-6)
    folded = load_config("mimic_cxr", {"generate.decoder": "folded"})
    more = plan_stage("generations", folded, COUNTS, A100).worker_bytes - plan.worker_bytes
    assert more == pytest.approx(2 * 2_622_136_320 + cache / 64, rel=1e-6)
    assert (
        plan_stage("generations", load_config("mimic_cxr", {"generate.batch_size": "256"}), COUNTS, A100).worker_bytes
        > 40e9
    )


@pytest.mark.parametrize(
    ("stage", "gigabytes"),
    # 2.78 G parameters on 8 GPUs: 16; 4 + 12/8; 2 + 14/8; 16/8 bytes each
    [(0, 44.49), (1, 15.29), (2, 10.43), (3, 5.56)],
)
def test_zero_splits_what_it_says(stage: int, gigabytes: float) -> None:
    assert zero_bytes(2_780_334_080, 8, stage) / 1e9 == pytest.approx(gigabytes, abs=0.01)


def test_muon_keeps_less_than_adamw() -> None:
    # 2 + 2 and 4 + 8 or 4 + 4 bytes
    assert zero_bytes(100, 1, 2) - zero_bytes(100, 1, 2, muon=60) == 60 * 4
    adamw, muon = load_config("mimic_cxr"), load_config("mimic_cxr", {"llm.train.muon_lr": "0.01"})
    less = plan_stage("llm", adamw, COUNTS, A100).worker_bytes - plan_stage("llm", muon, COUNTS, A100).worker_bytes
    assert less == 4 * 32 * 12 * 2560**2 / 8


def test_mimic_is_counted_by_its_frontal_images() -> None:
    assert COUNTS.all == 147_173 + 96_161 == 243_334
    assert (COUNTS.validate, COUNTS.test) == (1_930, 3_329)
    counted = planning.expected_counts(MIMIC, {"train": 5, "validate": 2, "test": 1})
    assert counted.all == 8 and counted.source == "counted in studies/"
    with pytest.raises(ValueError, match=r"prepare_data\.py"):
        planning.expected_counts(load_config("mimic_cxr", {"data.source": "manifest"}))


def test_the_paper_fits_its_gpus_and_its_times_can_be_checked() -> None:
    plans = {stage: plan_stage(stage, MIMIC, COUNTS, A100) for stage in PLANS}
    assert all(plan.worker_bytes < 40e9 for plan in plans.values())
    # 265 steps x 15 epochs; 3 x 39.51 G x 112 / (312 T x 0.3) each
    assert 238_075 // 896 == 265
    assert plans["adamatch"].seconds == pytest.approx(265 * 15 * 3 * 39.51e9 * 112 / (312e12 * 0.3), rel=1e-3)
    # 2,479 steps x 5 epochs; 6 x 2.780 G x 456 x 24 / (312 T x 0.45) each
    assert plans["llm"].seconds == pytest.approx(2_479 * 5 * 6 * 2.780334e9 * 456 * 24 / (312e12 * 0.45), rel=1e-6)
    # 243,334 images of 138.56 G on 8 x 19.5 T x 0.4
    assert plans["tokens"].seconds == pytest.approx(243_334 * 138.563e9 / (8 * 19.5e12 * 0.4), rel=1e-3)
    assert plans["tokens"].stored_bytes == 243_334 * 612
    alone = load_config("mimic_cxr", {"scale.workers": "1"})
    assert plan_stage("llm", alone, COUNTS, A100).worker_bytes > 40e9, "all of the optimiser on one GPU"
    adapters = load_config("mimic_cxr", {"scale.workers": "1", "llm.lora.rank": "16"})
    # 2 B x 2,780.3 M + 14 B x (16 x 16 x 2,560 x 32 + 2 x 51,305 x 2,560) = 9.53 GB, activations and logits as before
    more = plans["llm"].worker_bytes - zero_bytes(2_780_334_080, 8, 2)
    assert plan_stage("llm", adapters, COUNTS, A100).worker_bytes - more == pytest.approx(9.532e9, rel=1e-3)


def test_an_unknown_language_model_is_said_to_be_unknown() -> None:
    config = load_config("mimic_cxr", {"llm.name_or_path": "some/model"})
    with pytest.raises(ValueError, match="sizes of some/model are not known"):
        plan_stage("llm", config, COUNTS, A100)


def test_what_was_measured_stands_beside_the_prediction() -> None:
    plan = planning.Plan("tokens", 100.0, 41e9, 2e6, "arithmetic", ("a line",))
    text = "\n".join(planning.describe_plan(plan, A100, measured=250.0))
    assert "= time     100 s; measured 4.17 min (2.5x)" in text
    assert "41 GB a worker of 40 GB (A100-40GB): DOES NOT FIT" in text and "= storage  2 MB" in text


Main = Callable[[Sequence[str]], "dict[str, Any] | None"]


def test_a_plan_of_every_preset_is_printed_and_touches_nothing(
    job: Callable[[str], Main], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(tmp_path / "run")
    for preset in ("phantom", "openi", "mimic_cxr", "released"):
        answer = job("plan")(["--config", preset, "--root", root])
        assert answer is not None and answer["predicted_hours"] > 0
        out = capsys.readouterr().out
        assert all(f"\n{stage}\n" in out for stage in PLANS)
        assert answer["fits"] == (preset != "openi"), "one GPU does not hold dolly with its optimiser"
    assert not (tmp_path / "run").exists()
    assert job("plan")(["h200", "--config", "mimic_cxr", "--root", root])
    assert "one H200 each" in capsys.readouterr().out


def test_a_dry_run_ends_with_its_stage_s_plan(
    job: Callable[[str], Main], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job("cache_tokens")(["--config", "mimic_cxr", "--root", str(tmp_path / "run"), "--dry-run"])
    assert "#   = time     9.01 min" in capsys.readouterr().out
    job("prepare_data")(["--root", str(tmp_path), "--data.source", "manifest", "--dry-run"])
    assert "# no prediction: how many studies a table of your own has" in capsys.readouterr().out
