"""The language model's tuning: hints, records, DeepSpeed against one process, and the job from end to end."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.multiprocessing as processes
from tiny_cycle import finish_stages
from transformers import AutoModelForCausalLM, AutoTokenizer

from adamatch_ray.codebooks import VisualCodebook
from adamatch_ray.config import DeepSpeedConfig, LLMStage, LLMTrain, LoRAConfig
from adamatch_ray.data import loading
from adamatch_ray.instructions import Example, InstructionBuilder, prompt_phrases
from adamatch_ray.model_config import InstructionConfig
from adamatch_ray.models.llm import load_llm
from adamatch_ray.models.llm_lora import add_adapters, merge_adapters
from adamatch_ray.models.llm_tokens import TokenLayout, make_layout, train_bpe_tokenizer
from adamatch_ray.pipeline.hints import KEYPATCHES, KEYWORDS, HintCache
from adamatch_ray.schema import HINTS
from adamatch_ray.storage import Manifest, Root
from adamatch_ray.train.distributed import Worker
from adamatch_ray.train.llm_checkpoint import check_resume, convert, refuse_other_workers
from adamatch_ray.train.llm_plan import plan_llm
from adamatch_ray.train.llm_records import DIRECTIONS, RecordReader, record_shards, to_examples

Main = Callable[[Sequence[str]], "dict[str, Any] | None"]

STAGE = LLMStage(
    name_or_path="",
    hidden_size=32,
    layers=2,
    heads=2,
    context=512,
    vocab_size=400,
    dtype="float32",
    gradient_checkpointing=False,
    train=LLMTrain(batch_size=8, lr=1e-2, weight_decay=0.01),
)
OPTIONS = {
    "name_or_path": "", "hidden_size": "32", "layers": "1", "heads": "2", "context": "512", "vocab_size": "400",
    "dtype": "float32", "gradient_checkpointing": "false", "train.lr": "3e-3", "train.epochs": "2",
    "train.batch_size": "16",
}  # fmt: skip
ARGUMENTS = [part for name, value in OPTIONS.items() for part in (f"--llm.{name}", value)]


@pytest.fixture(scope="module")
def inputs(studies_root: Path, tiny_yaml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root in which everything is finished that the language model is tuned from; read only."""
    root = tmp_path_factory.mktemp("inputs")
    shutil.copytree(studies_root / "studies", root / "studies")
    finish_stages(root, tiny_yaml)
    shutil.rmtree(root / "llm")
    return root


@pytest.fixture
def root(inputs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(inputs, tmp_path / "root"))


@pytest.fixture(scope="module")
def planned(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TokenLayout]:
    """A root with tokenizer and hints as well, and its layout; read only."""
    root = Path(shutil.copytree(inputs, tmp_path_factory.mktemp("planned") / "root"))
    layout = plan_llm(Root(str(root)), STAGE)
    cache = HintCache(str(root))
    for name in Root(str(root)).stage("studies").require().files:
        if not name.startswith("test/"):
            cache.make(name)
    return root, layout


def test_hints_are_keywords_and_patches_of_other_studies(planned: tuple[Path, TokenLayout]) -> None:
    root, _ = planned
    entries = VisualCodebook.load(Root(str(root)).stage("codebooks")).table["study_id"].to_pylist()
    own = 0
    for path in (root / "llm" / "hints").glob("*/*.parquet"):
        hints, studies = pq.read_table(path), pq.read_table(root / "studies" / path.parent.name / path.name)
        assert hints.schema.equals(HINTS)
        assert hints["dicom_id"].to_pylist() == studies["dicom_id"].to_pylist()
        for row in hints.to_pylist():
            own += row["study_id"] in entries
            assert 0 < len(row["keywords"]) <= KEYWORDS and len(row["keypatches"]) <= KEYPATCHES
            assert row["study_id"] not in [entries[entry] for entry in row["keypatches"]]
    assert own > 0, "a study of the codebook is among them"


def test_hints_that_are_there_are_kept_unless_adamatch_changed(planned: tuple[Path, TokenLayout]) -> None:
    root, _ = planned
    name = next(n for n in Root(str(root)).stage("studies").require().files if n.startswith("validate/"))
    assert HintCache(str(root)).make(name).reused
    stage = Root(str(root)).stage("codebooks")
    manifest = stage.require()
    stage.commit(Manifest(**{**manifest.__dict__, "fingerprint": "other"}))
    assert not HintCache(str(root)).make(name).reused
    stage.commit(manifest)
    assert not HintCache(str(root)).make(name).reused


def read_epoch(planned: tuple[Path, TokenLayout], epoch: int, skip: int = 0) -> list[Example]:
    root, layout = planned
    reader = RecordReader(str(root), layout, InstructionConfig())
    windows = loading.plan_windows(
        record_shards(Root(str(root)), "train"),
        batch_size=16,
        world=1,
        rank=0,
        seed=3,
        epoch=epoch,
        skip=skip,
        window=100,
    )
    tables = [reader.read(window) for window in windows]
    batches = [{name: table[name].to_numpy() for name in table.column_names} for table in tables]
    return [example for batch in batches for example in to_examples(batch)]


def test_an_epoch_has_each_study_once_in_each_direction(planned: tuple[Path, TokenLayout]) -> None:
    records = read_epoch(planned, 0)
    seen = [(record.study_id, record.direction) for record in records]
    assert len(seen) == len(set(seen)) == 2 * 96
    assert {direction for _, direction in seen} == set(DIRECTIONS)
    assert 3 < sum(direction == DIRECTIONS[0] for _, direction in seen[:16]) < 13, "the directions are mixed"
    for record in records:
        assert (record.labels[record.response_start :] == record.input_ids[record.response_start :]).all()
        assert (record.labels[: record.response_start] == -100).all()
    again, later, rest = read_epoch(planned, 0), read_epoch(planned, 1), read_epoch(planned, 0, skip=5)
    assert [r.input_ids.tolist() for r in again] == [r.input_ids.tolist() for r in records]
    assert [r.input_ids.tolist() for r in rest] == [r.input_ids.tolist() for r in records[80:]]
    assert [r.study_id for r in later] != [r.study_id for r in records]
    first = {(r.study_id, r.direction): r.input_ids.tolist() for r in records}
    changed = sum(first[r.study_id, r.direction] != r.input_ids.tolist() for r in later)
    assert changed > 96, "most records are worded anew"


def test_fixed_wordings_take_one_token_each(planned: tuple[Path, TokenLayout]) -> None:
    root, layout = planned
    tokenizer = AutoTokenizer.from_pretrained(str(root / "llm" / "tokenizer"))
    assert len(tokenizer) == layout.text_size <= 400
    assert [len(tokenizer.encode(phrase)) for phrase in prompt_phrases()] == [1] * len(prompt_phrases())
    builder = InstructionBuilder(tokenizer, layout)
    assert len(builder.report_prompt(np.zeros(layout.image_tokens), [])) == layout.image_tokens + 6


def test_a_finding_and_its_side_are_one_token_where_prompts_list_them(root: Path) -> None:
    prompt = InstructionConfig(keyword_places=True, image_facts=True)
    plan_llm(Root(str(root)), replace(STAGE, vocab_size=800, instructions=prompt))
    tokenizer = AutoTokenizer.from_pretrained(str(root / "llm" / "tokenizer"))
    for said in ("effusion left", " effusion left", " chest tube right"):
        assert len(tokenizer.encode(said)) == 1, said


def test_what_does_not_belong_together_is_refused(root: Path) -> None:
    stages = Root(str(root))
    with pytest.raises(ValueError, match=r"64 tokens takes 70, the context of --llm.context is 60"):
        plan_llm(stages, replace(STAGE, context=60))
    _spoil_footer(next((root / "tokens" / "validate").glob("*.parquet")))
    with pytest.raises(ValueError, match=r"tokens of VQ-GAN abc, .*vqgan is \w+: run python jobs/cache_tokens.py"):
        plan_llm(stages, STAGE)


def _spoil_footer(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({"model": "abc"}), path)


def test_a_tokenizer_that_does_not_fit_its_checkpoint_is_refused(root: Path) -> None:
    from transformers import GPTNeoXConfig

    train_bpe_tokenizer(["clear lungs"], 300, root / "other")
    GPTNeoXConfig(vocab_size=5000, hidden_size=32, num_attention_heads=2).save_pretrained(str(root / "other"))
    with pytest.raises(ValueError, match=r"tokenizer has \d+ entries, the checkpoint 5000 rows"):
        plan_llm(Root(str(root)), replace(STAGE, name_or_path=str(root / "other")))


def some_records(folder: str) -> tuple[Any, TokenLayout, list[Example]]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    layout = make_layout(tokenizer, 16, (4, 4), 256, "abc")
    builder, codes = InstructionBuilder(tokenizer, layout), np.arange(16)
    made: list[Any] = []
    for i in range(8):
        text = " ".join(["Small left pleural effusion."] * (1 + i % 3))
        made.append(builder.report_example(f"s{i}", 0, codes * (i + 1) % 16, ["effusion"], text))
        made.append(builder.image_example(f"s{i}", 0, text, [i], codes * (i + 3) % 16))
    return tokenizer, layout, made


def tune(
    rank: int, world: int, stage: LLMStage, folder: str, start: int, stop: int, save_at: int, universal: bool
) -> None:
    """Steps start … stop - 1 of a run in one of `world` processes; the first writes losses and weights."""
    import torch.distributed as dist

    from adamatch_ray.train.fit_llm import Tuner, response_tokens

    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_SIZE=str(world))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet-{world}-{start}-{stop}", rank=rank, world_size=world)
    worker = Worker(rank, world, torch.device("cpu"), bf16=False)
    tokenizer, layout, records = some_records(f"{folder}/tokenizer")
    tuner = Tuner(stage, worker, tokenizer, layout, universal)
    checkpoint = Path(folder) / (f"checkpoint-{world}" if not universal else "checkpoint-2-universal")
    if start:
        tuner.restore(checkpoint)
    losses = []
    for step in range(start, stop):
        if step == save_at:
            tuner.save(checkpoint, {"step": step})
        batch = [records[(3 * step + j) % 16] for j in range(8)]
        # The shares are not equal, and once the second worker has nothing at all.
        mine = (batch[:5], batch[5:])[rank] if world == 2 and step != 4 else batch if rank == 0 else []
        tokens = torch.tensor(float(response_tokens(mine)))
        worker.add_up(tokens)
        half = -(-len(mine) // stage.deepspeed.accumulate)
        parts = [mine[i * half : (i + 1) * half] for i in range(stage.deepspeed.accumulate)]
        total = tuner.step(parts, step, 1.0, tokens)
        worker.add_up(total)
        losses.append(float(total / tokens))
    scores = tuner.losses([records[rank::world]], DIRECTIONS)
    tuner.save(Path(folder) / f"end-{world}-{start}", {"step": stop})
    if worker.is_first:
        said = {"losses": losses, "scores": scores}
        (Path(folder) / f"said-{world}-{start}.json").write_text(json.dumps(said))
    dist.barrier()
    dist.destroy_process_group()


def tuned(
    folder: Path,
    world: int,
    stage: LLMStage,
    start: int = 0,
    stop: int = 20,
    save_at: int = -1,
    universal: bool = False,
) -> Any:
    if not (folder / "tokenizer").exists():
        train_bpe_tokenizer(["Small left pleural effusion."], 300, folder / "tokenizer", prompt_phrases())
    (folder / f"meet-{world}-{start}-{stop}").unlink(missing_ok=True)  # that of an earlier run holds its addresses
    processes.spawn(tune, (world, stage, str(folder), start, stop, save_at, universal), nprocs=world)
    return json.loads((folder / f"said-{world}-{start}.json").read_text())


@pytest.mark.slow
def test_zero_2_on_two_workers_is_one_process_and_goes_on_exactly(tmp_path: Path) -> None:
    alone = tuned(tmp_path, 1, STAGE)
    both = tuned(tmp_path, 2, STAGE, save_at=12)
    assert both["losses"] == pytest.approx(alone["losses"], abs=1e-4) and len(both["losses"]) == 20
    assert both["losses"][-1] < 0.5 * both["losses"][0]
    assert both["scores"] == pytest.approx(alone["scores"], abs=1e-4)
    resumed = tuned(tmp_path, 2, STAGE, start=12)
    assert resumed["losses"] == both["losses"][12:] and resumed["scores"] == both["scores"]
    ends = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("end-2-0", "end-2-12")]
    assert ends[0] == ends[1]
    with pytest.raises(ValueError, match=r"written by 2 worker\(s\) with ZeRO stage 2, this run has 1 .*workers 2 "):
        check_resume(Root(str(tmp_path)).stage("llm"), "run", str(tmp_path / "checkpoint-2"), 1, 2)
    check_resume(Root(str(tmp_path)).stage("llm"), "run", str(tmp_path / "checkpoint-2"), 2, 2)
    # Converted, it is continued by one.
    assert convert(tmp_path / "checkpoint-2") == tmp_path / "checkpoint-2-universal"
    check_resume(Root(str(tmp_path)).stage("llm"), "run", str(tmp_path / "checkpoint-2-universal"), 1, 2)
    other = tuned(tmp_path, 1, STAGE, start=12, universal=True)
    assert other["losses"] == pytest.approx(alone["losses"][12:], abs=1e-4)
    plain = AutoModelForCausalLM.from_pretrained(str(tmp_path / "end-2-0" / "model"))
    rows = len(AutoTokenizer.from_pretrained(str(tmp_path / "end-2-0" / "model"))) + 16
    assert plain.get_output_embeddings().weight.shape == (rows, 32)


@pytest.mark.parametrize(("zero_stage", "muon", "offered"), [(2, False, True), (0, False, False), (2, True, False)])
def test_other_workers_are_offered_to_convert_only_what_can_be_converted(
    zero_stage: int, muon: bool, offered: bool
) -> None:
    said = {"workers": 2, "zero_stage": zero_stage, "muon": muon}
    fix = r"convert --resume /c$" if offered else r"--llm\.name_or_path /c/model --run-name NAME$"
    with pytest.raises(ValueError, match=fix) as raised:
        refuse_other_workers(said, 1, zero_stage, "/c")
    assert ("convert" in str(raised.value)) == offered


@pytest.mark.slow
def test_muon_takes_the_same_steps_on_two_workers_goes_on_exactly_and_learns_from_fewer(tmp_path: Path) -> None:
    stage = replace(STAGE, train=replace(STAGE.train, muon_lr=0.02, clip=0.0))
    both = tuned(tmp_path, 2, stage, stop=8, save_at=5)
    with pytest.raises(ValueError, match=r"with Muon, .*--llm.name_or_path"):
        convert(tmp_path / "checkpoint-2")
    alone = tuned(tmp_path, 1, replace(stage, deepspeed=DeepSpeedConfig(stage=0)), stop=8)
    assert both["losses"] == pytest.approx(alone["losses"], abs=1e-3)
    resumed = tuned(tmp_path, 2, stage, start=5, stop=8)
    assert resumed["losses"] == both["losses"][5:] and resumed["scores"] == both["scores"]
    spread = replace(stage, deepspeed=DeepSpeedConfig(stage=3))
    assert tuned(tmp_path, 2, spread, stop=8)["losses"] == pytest.approx(alone["losses"], abs=1e-3)
    assert alone["losses"][-1] < tuned(tmp_path, 1, STAGE, stop=8)["losses"][-1]


@pytest.mark.slow
@pytest.mark.parametrize(("zero", "world"), [(0, 1), (3, 2)])
def test_other_zero_stages_take_the_same_steps(tmp_path: Path, zero: int, world: int) -> None:
    two = DeepSpeedConfig(stage=2, accumulate=2)
    wanted = tuned(tmp_path, 1, replace(STAGE, deepspeed=two), stop=6)
    other = replace(STAGE, deepspeed=replace(two, stage=zero))  # type: ignore[arg-type]
    assert tuned(tmp_path, world, other, stop=6)["losses"] == pytest.approx(wanted["losses"], abs=1e-5)


@pytest.mark.slow
def test_adapters_learn_and_leave_text_rows_alone(tmp_path: Path) -> None:
    stage = replace(STAGE, lora=LoRAConfig(rank=4, dropout=0.0))
    said = tuned(tmp_path, 1, stage, stop=12, save_at=0)
    assert said["losses"][-1] < said["losses"][0] - 0.3
    before, after = (load_llm(tmp_path / name / "model") for name in ("checkpoint-1", "end-1-0"))
    old, new = before.model.state_dict(), after.model.state_dict()
    assert old.keys() == new.keys() and not any("lora" in name for name in new)
    start = after.layout.image_start
    for name in ("gpt_neox.embed_in.weight", "lm_head.weight"):
        assert torch.equal(old[name][:start], new[name][:start]) and not torch.equal(
            old[name][start:], new[name][start:]
        )
    name = "gpt_neox.layers.0.attention.query_key_value.weight"
    assert not torch.equal(old[name], new[name])


def test_merged_adapters_give_the_same_answers(tmp_path: Path) -> None:
    from adamatch_ray.models.llm import build_llm

    tokenizer = train_bpe_tokenizer(["effusion"], 300, tmp_path)
    model, plain = (build_llm(STAGE, tokenizer, 16, (4, 4)) for _ in range(2))
    add_adapters(model, 4, 16.0, 0.0, 300)
    assert sum(p.requires_grad for p in model.parameters()) < sum(1 for _ in model.parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name:
                parameter.normal_(std=0.2)
    plain.load_state_dict(merge_adapters(model, dict(model.named_parameters(remove_duplicate=False))))
    ids = torch.arange(40)[None]
    torch.testing.assert_close(plain(ids).logits, model.eval()(ids).logits, rtol=1e-4, atol=1e-5)


def run_job(job: Callable[[str], Main], yaml: Path, root: Path, *more: str) -> dict[str, Any]:
    arguments = ["--config", str(yaml), "--root", str(root), *ARGUMENTS, "--scale.workers", "2", *more]
    answer = job("tune_llm")(arguments)
    assert answer is not None
    return answer


def rows(root: Path, kind: str) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl of a kind, without the one figure that is a matter of time."""
    found = [json.loads(line) for line in (root / "llm" / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "wait"} for row in found if row["kind"] == kind]


def _dies_once(settings: Any, worker: Worker, *, layout: TokenLayout) -> Any:
    """The fitter, in two workers of which one is killed during step 8 the first time."""
    from adamatch_ray.train.fit_llm import LLMFitter

    marker, fitter = Path(settings.root) / "killed", LLMFitter(settings, worker, layout=layout)
    step = fitter.step

    def killed_in_step_eight(batch: Any) -> Any:
        if fitter.schedule.step == 7 and worker.rank == 1 and not marker.exists():
            marker.write_text("")
            os.kill(os.getpid(), signal.SIGKILL)
        return step(batch)

    mock.patch.object(fitter, "step", killed_in_step_eight).start()
    return fitter


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_run_ends_as_an_uninterrupted_one(
    job: Callable[[str], Main],
    inputs: Path,
    tiny_yaml: Path,
    tmp_path: Path,
    ray_session: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray.cloudpickle

    from adamatch_ray.train import fit_llm as llm

    whole, killed = (Path(shutil.copytree(inputs, tmp_path / name)) for name in ("whole", "killed"))
    answer = run_job(job, tiny_yaml, whole)
    # Three shards of 64 records for two workers of 16 records a step.
    assert (answer["stage"], answer["status"], answer["steps"], answer["overlength"]) == ("llm", "done", 12, 0.0)
    assert answer["score"] == pytest.approx(-(answer["cxr_to_report_loss"] + answer["report_to_cxr_loss"]) / 2)
    train, validate = rows(whole, "train"), rows(whole, "validate")
    assert [row["step"] for row in train] == list(range(1, 13)) and [row["step"] for row in validate] == [6, 12]
    assert validate[1]["score"] > validate[0]["score"]
    loaded = load_llm(whole / "llm" / "model")
    assert loaded.layout.image_tokens == 64
    manifest = Root(str(whole)).stage("llm").require()
    assert sum(manifest.files.values()) == 112 and set(manifest.parents) == {
        "studies",
        "adamatch",
        "codebooks",
        "tokens",
    }
    assert json.loads((whole / "llm" / "instructions.json").read_text())["keypatches"] == 5

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(llm, "LLMFitter", _dies_once)
    run_job(job, tiny_yaml, killed)
    assert (killed / "killed").exists(), "a worker was killed on the way"
    assert rows(killed, "train") == train and rows(killed, "validate") == validate
    weights = [(root / "llm" / "model" / "model.safetensors").read_bytes() for root in (whole, killed)]
    assert weights[0] == weights[1]
    # Killed before the commit, and begun again with other workers.
    (killed / "llm" / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"written by 2 worker\(s\).*this run has 1 .*--scale.llm_workers 2"):
        run_job(job, tiny_yaml, killed, "--scale.workers", "1")


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_out_of_time_is_a_finished_run(
    job: Callable[[str], Main], inputs: Path, tiny_yaml: Path, tmp_path: Path, ray_session: None
) -> None:
    root = Path(shutil.copytree(inputs, tmp_path / "root"))
    answer = run_job(job, tiny_yaml, root, "--llm.train.epochs", "1000", "--llm.train.max_minutes", "0.1")
    assert 0 < answer["steps"] < 4000 and answer["status"] == "done"
    assert rows(root, "train")[-1]["lr"] < 3e-3 * 0.3, "the schedule had come to its end"
