"""Run the training loop on Ray Train's workers and commit what it saved."""

import json
from pathlib import Path
from typing import Any

import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from adamatch_ray.cluster import device_of, start_ray
from adamatch_ray.config import ScaleConfig
from adamatch_ray.data import loading
from adamatch_ray.specs import fingerprint
from adamatch_ray.stage import StageRun
from adamatch_ray.train.loop import MakeFitter, TrainSettings, fit


def fit_stage(
    run: StageRun, make: MakeFitter, score: str, *, per_epoch: int = 0, files: dict[str, int] | None = None
) -> dict[str, Any]:
    """Fit what `make` makes on the workers, publish the best checkpoint's model, commit the stage; the job's answer.

    score: the reported metric whose highest value marks the best checkpoint. per_epoch: steps of an epoch, where a
    step is not a batch of studies. files: rows of further files of the stage. Raises ValueError when an earlier run of
    this name had other settings, RuntimeError when fewer steps ran than asked, unless the loop reported `out_of_time`.
    """
    scale, train = run.config.scale, getattr(run.config, run.name).train
    if not per_epoch:
        shards = loading.list_shards(run.root.stage("studies"), "train")
        per_epoch = loading.steps_per_epoch(shards, train.batch_size, scale.workers_of(run.name))
    total = min(train.max_steps or per_epoch * train.epochs, per_epoch * train.epochs)
    start_ray(scale, dashboard=True)
    resume = run.command.resume
    _claim_run(run, resume)
    path = resume if resume not in ("auto", "never") else ""
    result = _fit(run, TrainSettings(run.name, score, run.root.uri, run.config, total, path, run.init), make)
    assert result.checkpoint is not None and result.metrics is not None
    steps = result.metrics["step"]
    if steps != total and not result.metrics.get("out_of_time"):
        raise RuntimeError(f"{run.name}: {steps} steps ran, {total} were asked for")
    best = result.get_best_checkpoint(score, "max") or result.checkpoint
    with best.as_directory() as folder:
        run.stage.upload(Path(folder) / "model", "model")
    figures = {name: value for name, value in result.metrics.items() if isinstance(value, float)}
    return run.finish({"steps": steps, **figures}, files=files)


def _fit(run: StageRun, settings: TrainSettings, make: MakeFitter) -> ray.train.Result:
    scale = run.config.scale

    def on_worker() -> None:
        fit(settings, make)

    trainer = TorchTrainer(
        on_worker,
        torch_config=TorchConfig(backend="gloo" if device_of(scale) == "cpu" else "nccl"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=scale.workers_of(run.name),
            use_gpu=scale.gpu,
            resources_per_worker=_resources(scale),
        ),
        run_config=ray.train.RunConfig(
            name=run.command.run_name,
            storage_path=f"{run.stage.path}/training",
            storage_filesystem=run.stage.filesystem,
            failure_config=ray.train.FailureConfig(max_failures=scale.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2, checkpoint_score_attribute=settings.score),
        ),
    )
    return trainer.fit()


def _resources(scale: ScaleConfig) -> dict[str, float]:
    return {"CPU": scale.cpus_per_worker, **({"GPU": 1} if scale.gpu else {})}


def _claim_run(run: StageRun, resume: str) -> None:
    """Ray Train continues any run of the same name: make sure that is what is wanted.

    Another number of workers may continue a run, with the same batch of all workers together; the language model's
    checkpoints ask for more (`llm_checkpoint.check_resume`).
    """
    folder = f"training/{run.command.run_name}"
    earlier, claim = run.stage.read_text(f"{folder}.json"), _claim(run)
    if resume == "never" or run.command.overwrite:
        run.stage.delete(folder)
    elif earlier is not None and (was := json.loads(earlier)) != claim:
        if was.get("settings") == claim["settings"]:
            raise ValueError(
                f"{run.stage.uri}/{folder} was begun with batches of {was['batch']}, these workers together take "
                f"{claim['batch']}: set --{run.name}.train.batch_size to {was['batch']} divided by them"
            )
        raise ValueError(
            f"{run.stage.uri}/{folder} was begun with other settings; "
            "use --resume never to start anew, or another --run-name"
        )
    run.stage.write_bytes(f"{folder}.json", json.dumps(claim).encode())


def _claim(run: StageRun) -> dict[str, Any]:
    """What must not change while a run goes on: its settings, and the batch of all workers together."""
    settings = json.loads(json.dumps(run.settings))
    batch = settings.pop("workers") * settings[run.name]["train"].pop("batch_size")
    return {"settings": fingerprint(settings, run.parents), "batch": batch}
