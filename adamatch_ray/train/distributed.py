"""The one file that speaks torch.distributed: who a worker is, and collectives with gradients."""

import os
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from adamatch_ray.cluster import DEVICE_VARIABLE
from adamatch_ray.losses.contrastive import Gather, identity


@dataclass(frozen=True)
class Worker:
    """One training process: its rank, how many there are, its device and the precision of its arithmetic."""

    rank: int
    world: int
    device: torch.device
    bf16: bool

    @property
    def is_first(self) -> bool:
        """True for the one worker that writes."""
        return self.rank == 0

    def autocast(self) -> Any:
        """bf16 autocast where asked for, otherwise nothing."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def gather(self, negatives: str) -> Gather:
        """The differentiable all-gather for `global` negatives, the identity for `local` ones or a single worker."""
        return all_gather if self.world > 1 and negatives == "global" else identity

    def wrap(self, model: nn.Module) -> nn.Module:
        """Data-parallel over the workers; the module itself for one worker."""
        if self.world == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel

        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids)

    def add_up(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over the workers."""
        if self.world > 1:
            dist.all_reduce(tensor)

    def mean(self, value: Tensor) -> float:
        """A scalar averaged over the workers."""
        if self.world > 1:
            value = value.detach().clone()
            dist.all_reduce(value)
            value = value / self.world
        return float(value)


def current_worker(precision: str, threads: int = 0) -> Worker:
    """The worker this process is, inside a Ray Train loop; `precision` and `threads` as in `TrainConfig`."""
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    rehearsed = os.environ.get(DEVICE_VARIABLE)  # see `cluster.device_of`
    device = torch.device(rehearsed) if rehearsed else ray.train.torch.get_device()
    if device.type == "cpu":  # Ray gives a worker the threads of its reserved CPUs, which here are for bookkeeping
        torch.set_num_threads(threads or max(1, _cores() // context.get_local_world_size()))
    bf16 = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return Worker(context.get_world_rank(), context.get_world_size(), device, bf16)


def _cores() -> int:
    """Cores this process may use: fewer than the machine has, where it is pinned."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        # Each worker's loss depends on everyone's tensor, so the gradients of all workers are summed.
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad.chunk(dist.get_world_size())[dist.get_rank()]


def all_gather(x: Tensor) -> Tensor:
    """Tensors [b, ...] of all workers as [W * b, ...]; the gradient of a part is summed over the workers.

    DistributedDataParallel averages parameter gradients over W workers, which turns the sum of the workers' mean
    losses into the mean loss of the whole batch: the same gradient as one worker with everything.
    """
    return _AllGather.apply(x)


def seed_step(seed: int, step: int, rank: int) -> torch.Generator:
    """Tie the random numbers of a step (dropout, crops) to (seed, step, rank), so that a resumed run draws the same.

    Returns a CPU generator for draws of the loop's own, after seeding torch's global ones.
    """
    value = (seed * 1_000_003 + step) * 1_009 + rank
    torch.manual_seed(value)
    return torch.Generator().manual_seed(value)
