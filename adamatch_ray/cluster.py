"""The Ray that a job runs on."""

import logging
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from adamatch_ray.config import ScaleConfig

Result = TypeVar("Result")

DEVICE_VARIABLE = "ADAMATCH_DEVICE"

_logger = logging.getLogger(__name__)

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # the patch shows every progress line twice
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # a failed task is told of once, by the job
    "TOKENIZERS_PARALLELISM": "false",
}


def start_ray(scale: "ScaleConfig", dashboard: bool = False) -> None:
    """Join the cluster this job belongs to, or start a Ray of its own on this machine.

    A Ray started here has a dashboard only where asked for: Ray Train needs one, to see whether a run is still alive.
    """
    import ray

    if ray.is_initialized():
        return
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if os.environ.get("RAY_ADDRESS"):
        ray.init(logging_level=logging.WARNING)
        return
    # Fewer than four logical CPUs starve the data loaders beside the training workers.
    cpus = scale.local_cpus or max(4, os.cpu_count() or 1)
    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=dashboard,
        logging_level=logging.WARNING,
        object_store_memory=int(os.environ.get("ADAMATCH_OBJECT_STORE", 1_000_000_000)),
    )


def actors(scale: "ScaleConfig") -> int:
    """How many processes a batch job spreads over: `scale.workers` GPUs, or at least this machine's cores."""
    return scale.workers if scale.gpu else max(scale.workers, os.cpu_count() or 1)


def device_of(scale: "ScaleConfig") -> str:
    """The torch device of a worker's models. ADAMATCH_DEVICE=cpu rehearses a run with GPUs where there are none."""
    return os.environ.get(DEVICE_VARIABLE, "cuda") if scale.gpu else "cpu"


def on_device(scale: "ScaleConfig", work: Callable[[str], Result]) -> Result:
    """`work(device)`, of one process: here, or with `scale.gpu` as a task on a node that has one to spare.

    A job's own process has none: on a cluster it runs on the head. What the work answers travels back.
    """
    if not scale.gpu:
        return work(device_of(scale))
    import ray

    def task() -> Result:
        return work(device_of(scale))

    start_ray(scale)
    remote = ray.remote(num_cpus=scale.cpus_per_worker, num_gpus=1, max_retries=scale.max_failures)(task)
    answer: Result = ray.get(remote.remote())
    return answer


def calm_ray_data() -> None:
    """Keep Ray Data from the terminal (jobs show their own progress) and from taking a core for itself.

    Its scheduler polls without a pause while its output is full, which is most of a training run, and it does so in
    the training process, where it took most of a core and of the interpreter lock from the model. What makes it pause
    is private to Ray 2.60; where another Ray has no such thing, loading is as right and costs that core.
    """
    from ray.data import DataContext

    context = DataContext.get_current()
    try:
        from ray.data._internal.execution.execution_callback import ExecutionCallback
    except ImportError:
        _logger.info("this Ray's data scheduler cannot be slowed down: it takes a core of each training process")
    else:

        class Unhurried(ExecutionCallback):
            def on_execution_step(self, executor: Any) -> None:
                time.sleep(0.02)

        context.custom_execution_callback_classes = [Unhurried]
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
