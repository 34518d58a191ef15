"""The tuning of the language model on both directions under DeepSpeed (eqs. 10-11; docs/method.md 4)."""

import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from adamatch_ray.config import LLMStage
from adamatch_ray.data import loading
from adamatch_ray.instructions import Example, pack
from adamatch_ray.model_config import to_json
from adamatch_ray.models.image_positions import positions_of
from adamatch_ray.models.llm import INSTRUCTIONS, build_llm, save_llm
from adamatch_ray.models.llm_lora import add_adapters, merge_adapters
from adamatch_ray.models.llm_loss import IGNORE, PackedBatch, ResponseLossModel, misread
from adamatch_ray.models.llm_tokens import TokenLayout
from adamatch_ray.storage import Root
from adamatch_ray.train import llm_records, optim
from adamatch_ray.train.deepspeed_config import deepspeed_config
from adamatch_ray.train.distributed import Worker, seed_step
from adamatch_ray.train.llm_checkpoint import TAG, read_progress, refuse_other_workers, write_progress
from adamatch_ray.train.loop import Source, TrainSettings
from adamatch_ray.train.tracking import Tracker

SCORE = "score"
"""The mean over both directions of a response token's log-likelihood on the validate split; higher is better."""


@dataclass
class TimedSchedule(optim.Schedule):
    """A schedule that may also end by the clock: minutes are counted on the first worker, over all its attempts."""

    max_minutes: float = 0.0
    minutes: float = 0.0
    earlier: float = 0.0
    overlength: int = 0
    """Records refused so far, because they do not fit the context."""

    def __post_init__(self) -> None:
        self.began = time.monotonic()

    def clock(self) -> float:
        """Minutes of this and earlier attempts, on this worker."""
        return self.earlier + (time.monotonic() - self.began) / 60

    @property
    def out_of_time(self) -> bool:
        """Whether `max_minutes` are over, by the first worker's clock."""
        return 0 < self.max_minutes <= self.minutes

    @property
    def done(self) -> bool:
        return super().done or self.out_of_time

    @property
    def share(self) -> float:
        """Share of the peak learning rate: it follows the steps or the time, whichever is further on."""
        way = max(self.step / self.total, self.minutes / self.max_minutes if self.max_minutes > 0 else 0.0)
        return optim.lr_at(min(way, 1.0) * self.total, self.total, self.warmup)

    @property
    def seconds_left(self) -> float:
        return max(0.0, 60 * (self.max_minutes - self.minutes)) if self.max_minutes > 0 else math.inf

    def figures(self) -> dict[str, Any]:
        return {"step": self.step, "out_of_time": self.out_of_time, "overlength": float(self.overlength)}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"step": self.step, "total": self.total, "minutes": self.minutes, "overlength": self.overlength}

    def put_back(self, saved: dict[str, Any]) -> None:
        """Continue from what a checkpoint kept; a converted one, whose steps were others, at its share of the way."""
        converted = saved.get("universal", False)
        self.step = round(saved["step"] * self.total / saved["total"]) if converted else saved["step"]
        self.overlength = saved["overlength"]
        self.earlier = self.minutes = saved["minutes"]


class LLMFitter:
    """Tunes the language model on records of both directions, which the workers share; `layout` is its vocabulary's."""

    tuner: "Tuner"

    def __init__(self, settings: TrainSettings, worker: Worker, *, layout: TokenLayout) -> None:
        self.stage, self.worker, self.layout = settings.config.llm, worker, layout
        self.root, train = Root(settings.root), self.stage.train
        self.schedule = TimedSchedule(settings.total_steps, train.warmup, max_minutes=train.max_minutes)

    @property
    def source(self) -> Source:
        return record_source(self.root, self.stage, self.layout)

    def begin(self, checkpoint: Path | None) -> None:
        said = read_progress(checkpoint) if checkpoint else {}
        tokenizer = llm_records.load_tokenizer(self.root)
        self.tuner = Tuner(self.stage, self.worker, tokenizer, self.layout, said.get("universal", False))
        if checkpoint:
            self.tuner.restore(checkpoint)
            self.schedule.put_back(said)

    def step(self, batch: loading.Batch) -> dict[str, Tensor | float]:
        """Take one step. The workers agree first on the tokens of all of them and on the time."""
        worker, schedule, train = self.worker, self.schedule, self.stage.train
        records = llm_records.to_examples(batch)
        refused = len(batch["study_id"]) - len(records)
        clock = schedule.clock() if worker.is_first else 0.0
        told = torch.tensor([response_tokens(records), refused, clock], dtype=torch.float64, device=worker.device)
        worker.add_up(told)
        tokens, overlength, schedule.minutes = told.tolist()
        if tokens == 0:
            raise ValueError("no record of a step fits the context: raise --llm.context, or leave out keywords")
        share = schedule.share
        parts = list(llm_records.chunks(records, train.batch_size, self.stage.deepspeed.accumulate))
        total = self.tuner.step(parts, schedule.step, share, torch.tensor(tokens, device=worker.device)).double()
        worker.add_up(total)
        schedule.overlength += int(overlength)
        return {"loss": total / tokens, "tokens": tokens, "lr": train.lr * share, "overlength": overlength}

    def validate(self, tracker: Tracker) -> dict[str, float]:
        """Loss of a response token, each direction apart."""
        losses = self.tuner.losses(self._validation_parts(), llm_records.DIRECTIONS)
        scores = {f"{name}_loss": value for name, value in losses.items()}
        scores[SCORE] = -sum(losses.values()) / len(losses)
        tracker.score(self.schedule.step, scores)
        return scores

    def save(self, folder: Path) -> None:
        self.tuner.save(folder, self.schedule.state())

    def _validation_parts(self) -> Iterator[list[Example]]:
        """This worker's validation records in pieces, as many as every other worker has."""
        size, world, directions = self.stage.train.batch_size, self.worker.world, len(llm_records.DIRECTIONS)
        reader = llm_records.RecordReader(self.root.uri, self.layout, self.stage.instructions)
        for shard in llm_records.record_shards(self.root, "validate"):
            records = reader.records(shard.path, self.worker.rank, world)
            largest = -(-shard.rows // (directions * world)) * directions
            for part in llm_records.chunks(records, size, -(-largest // size)):
                yield [record for record in part if isinstance(record, Example)]


def record_source(root: Root, stage: LLMStage, layout: TokenLayout) -> Source:
    """The train split's records; a worker takes `batch_size` of them for each of the parts of an optimiser step."""
    size = stage.train.batch_size * stage.deepspeed.accumulate
    options = {"layout": layout, "instructions": stage.instructions}
    return Source(llm_records.record_shards(root, "train"), size, llm_records.RecordReader, options)


class Tuner:
    """A language model, spread over the workers by DeepSpeed. Every worker makes each call at the same time."""

    def __init__(
        self,
        stage: LLMStage,
        worker: Worker,
        tokenizer: PreTrainedTokenizerBase,
        layout: TokenLayout,
        universal: bool = False,
    ) -> None:
        """`universal`: what is restored is a converted checkpoint, see `train.llm_checkpoint`."""
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        disable_progress_bar()
        if worker.device.type == "cpu":
            # An all-reduce for inference would be compiled first, for a minute or more, and never be used here.
            deepspeed.ops.__compatible_ops__ = {}
            # Muon's few products are quick as they are, compiling them is not.
            torch.compiler.set_stance("force_eager")
        self.stage, self.worker, self.tokenizer, self.layout = stage, worker, tokenizer, layout
        # In bf16 training the optimiser holds the fp32 copy; in fp32 training the weights themselves are it.
        dtype = stage.dtype if worker.bf16 else "float32"
        size = replace(stage, dtype=dtype)
        self.model = build_llm(size, tokenizer, layout.image_codes, layout.image_grid, layout.quantizer)
        if stage.lora.rank > 0:
            lora = stage.lora
            add_adapters(self.model, lora.rank, lora.alpha, lora.dropout, layout.image_start)
        self.engine: Any = deepspeed.initialize(
            model=ResponseLossModel(self.model, stage.train.report_weight),
            model_parameters=_parameter_groups(self.model, stage.train.weight_decay),
            config=deepspeed_config(stage, worker.world, worker.device.type, universal),
        )[0]
        for group in self.engine.optimizer.param_groups:
            if group.get("use_muon"):
                group["share"] = stage.train.muon_lr / stage.train.lr

    def step(self, parts: Sequence[Sequence[Example]], number: int, share: float, tokens: Tensor) -> Tensor:
        """One optimiser step over `accumulate` parts of this worker's records; the summed loss of its tokens.

        The gradient is that of the mean over all workers' response tokens, `tokens` (a scalar): the same as of one
        worker with all records. `share` is that of the peak learning rate.
        """
        assert len(parts) == self.stage.deepspeed.accumulate
        seed_step(self.stage.train.seed, number, self.worker.rank)
        optim.set_lr(self.engine.optimizer, self.stage.train.lr * share)
        self.engine.train()
        sums = []
        for part in parts:
            total = self._total(part, self.stage.train.image_noise)
            # DeepSpeed divides by workers and parts, which is the mean of means; ours is the mean over tokens.
            self.engine.backward(total * (self.worker.world * len(parts) / tokens))
            self.engine.step()
            sums.append(total.detach())
        return torch.stack(sums).sum()

    @torch.no_grad()
    def losses(self, parts: Iterable[Sequence[Example]], directions: Sequence[str]) -> dict[str, float]:
        """Mean loss of a response token in each direction over all workers' records, whose parts are equally many."""
        sums = torch.zeros(len(directions), 2, dtype=torch.float64, device=self.worker.device)
        self.engine.eval()
        for part in parts:
            for row, direction in enumerate(directions):
                chosen = [record for record in part if record.direction == direction]
                sums[row, 0] += self._total(chosen)
                sums[row, 1] += response_tokens(chosen)
        self.worker.add_up(sums)
        means = (sums[:, 0] / sums[:, 1].clamp(min=1)).tolist()
        return dict(zip(directions, means, strict=True))

    def save(self, folder: Path, progress: dict[str, Any]) -> None:
        """This worker's part of a checkpoint; the first one adds `progress` and, under `model/`, the plain weights."""
        self.engine.save_checkpoint(str(folder), tag=TAG, save_latest=False)
        weights = self._plain_weights()
        if self.worker.is_first:
            write_progress(folder, progress, self.worker.world, self.stage)
            save_llm(self.model, self.tokenizer, folder / "model", weights)
            (folder / "model" / INSTRUCTIONS).write_text(to_json(self.stage.instructions))

    def restore(self, folder: Path) -> None:
        """Continue from a whole checkpoint. Raises ValueError when other workers or another ZeRO stage wrote it."""
        refuse_other_workers(read_progress(folder), self.worker.world, self.stage.deepspeed.stage, str(folder))
        path, _ = self.engine.load_checkpoint(str(folder), tag=TAG)
        assert path is not None, f"{folder} has no {TAG}/"

    def _total(self, records: Sequence[Example], noise: float = 0.0) -> Tensor:
        """Summed loss of records, the `noise` share of their images' tokens misread.

        Without a record, a forward pass that weighs nothing keeps the workers in step.
        """
        packed = self._pack(records) if records else _filler(self.layout)
        if noise:
            packed = misread(packed, noise, self.layout.image_start, self.layout.image_codes)
        total: Tensor = self.engine(*packed.to(self.worker.device))
        return total if records else total * 0.0

    def _pack(self, records: Sequence[Example]) -> PackedBatch:
        # Rows as long as the longest record: more would make attention look at more that it may not see.
        return pack(records, max(len(record.input_ids) for record in records), self.layout.pad_id)

    def _plain_weights(self) -> dict[str, Tensor]:
        """All weights on the CPU, whole and merged, for the first worker; empty for the others."""
        import deepspeed

        spread = self.stage.deepspeed.stage == 3
        dtype = getattr(torch, self.stage.dtype)
        weights: dict[str, Tensor] = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            with deepspeed.zero.GatheredParameters([parameter], enabled=spread):
                if self.worker.is_first:
                    weights[name] = parameter.detach().to("cpu", dtype, copy=True).contiguous()
        return merge_adapters(self.model, weights)


def response_tokens(records: Iterable[Example]) -> int:
    """Tokens that are learnt."""
    return sum(len(record.input_ids) - record.response_start for record in records)


def _parameter_groups(model: PreTrainedModel, decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices alone: not for biases and norms, nor for rows of the vocabulary."""
    ends = {end.weight for end in (model.get_input_embeddings(), model.get_output_embeddings())}
    positions = positions_of(model)
    ends |= set(positions.parameters()) if positions else set()
    trained = [p for p in nn.Module.parameters(model) if p.requires_grad]
    decayed = [p for p in trained if p.ndim >= 2 and p not in ends]
    kept = [p for p in trained if p.ndim < 2 or p in ends]
    return [{"params": decayed, "weight_decay": decay}, {"params": kept, "weight_decay": 0.0}]


def _filler(layout: TokenLayout) -> PackedBatch:
    ids = torch.tensor([[layout.pad_id, layout.end_id]])
    return PackedBatch(ids, torch.tensor([[IGNORE, layout.end_id]]), torch.tensor([[0, 1]]), torch.ones_like(ids))
