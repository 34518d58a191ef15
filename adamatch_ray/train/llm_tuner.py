"""One worker's language model under DeepSpeed: steps, scores, checkpoints, plain weights (eqs. 10-11)."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from adamatch_ray.config import LLMStage
from adamatch_ray.instructions import Example, pack
from adamatch_ray.models.llm import build_llm, save_llm
from adamatch_ray.models.llm_lora import add_adapters, merge_adapters
from adamatch_ray.models.llm_loss import IGNORE, PackedBatch, ResponseLossModel
from adamatch_ray.models.llm_tokens import TokenLayout
from adamatch_ray.train import optim
from adamatch_ray.train.deepspeed_config import deepspeed_config
from adamatch_ray.train.distributed import Worker, seed_step
from adamatch_ray.train.llm_checkpoint import TAG, read_progress, refuse_other_workers, write_progress


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
            model=ResponseLossModel(self.model),
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
            total = self._total(part)
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

    def restore(self, folder: Path) -> None:
        """Continue from a whole checkpoint. Raises ValueError when other workers or another ZeRO stage wrote it."""
        refuse_other_workers(read_progress(folder), self.worker.world, self.stage.deepspeed.stage, str(folder))
        path, _ = self.engine.load_checkpoint(str(folder), tag=TAG)
        assert path is not None, f"{folder} has no {TAG}/"

    def _total(self, records: Sequence[Example]) -> Tensor:
        """Summed loss of records. Without any, a forward pass that weighs nothing keeps the workers in step."""
        packed = self._pack(records) if records else _filler(self.layout)
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
    trained = [p for p in nn.Module.parameters(model) if p.requires_grad]
    decayed = [p for p in trained if p.ndim >= 2 and p not in ends]
    kept = [p for p in trained if p.ndim < 2 or p in ends]
    return [{"params": decayed, "weight_decay": decay}, {"params": kept, "weight_decay": 0.0}]


def _filler(layout: TokenLayout) -> PackedBatch:
    ids = torch.tensor([[layout.pad_id, layout.end_id]])
    return PackedBatch(ids, torch.tensor([[IGNORE, layout.end_id]]), torch.tensor([[0, 1]]), torch.ones_like(ids))
