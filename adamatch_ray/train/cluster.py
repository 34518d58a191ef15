"""The Ray that a job runs on."""

import logging
import os

from adamatch_ray.config import ScaleConfig

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # the patch shows every progress line twice
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # a failed task is told of once, by the job
    "TOKENIZERS_PARALLELISM": "false",
}


def start_ray(scale: ScaleConfig, dashboard: bool = False) -> None:
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


def actors(scale: ScaleConfig) -> int:
    """How many processes a batch job spreads over: `scale.workers` GPUs, or at least this machine's cores."""
    return scale.workers if scale.gpu else max(scale.workers, os.cpu_count() or 1)
