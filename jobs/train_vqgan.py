"""usage: python jobs/train_vqgan.py [options]

Train the VQ-GAN that turns X-rays into tokens, or, with --vqgan.train.epochs 0, take a published one (--vqgan.init).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adamatch_ray.cli import parse_command_line, run_as_command
from adamatch_ray.stage import StageRun


def main(arguments: Sequence[str]) -> dict[str, Any] | None:
    """Train on the workers, then commit the best checkpoint's model."""
    run = StageRun(parse_command_line(arguments, __doc__ or ""), "vqgan")
    if (answer := run.begin()) is not None:
        return answer
    stage = run.config.vqgan
    canvas = run.root.stage("studies").require().config["data"]["canvas"]
    if canvas != stage.image_size:
        raise ValueError(
            f"studies are stored at {canvas} pixels and this VQ-GAN reads {stage.image_size}: "
            f"use --vqgan.image_size {canvas}, or prepare the data with --data.canvas {stage.image_size}"
        )
    if stage.train.epochs == 0:
        return _adopt(run)
    from adamatch_ray.train.fit_vqgan import VQGANFitter
    from adamatch_ray.train.launch import fit_stage

    return fit_stage(run, VQGANFitter, "fidelity")


def _adopt(run: StageRun) -> dict[str, Any]:
    """Commit a published model as it is."""
    import tempfile

    from adamatch_ray.models.vqgan_io import load_checkpoint, save_pretrained
    from adamatch_ray.train.fit_vqgan import model_config

    if not run.init:
        raise ValueError("--vqgan.train.epochs 0 trains nothing: name a published VQ-GAN with --vqgan.init")
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(load_checkpoint(run.init, model_config(run.config.vqgan)), folder)
        run.stage.upload(Path(folder), "model")
    return run.finish({"steps": 0})


if __name__ == "__main__":
    run_as_command(main)
