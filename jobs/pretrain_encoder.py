"""usage: python jobs/pretrain_encoder.py [options]

Pre-train the image encoder by classifying 14 findings, as the paper does before AdaMatch.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from adamatch_ray.cli import parse_command_line, run_as_command
from adamatch_ray.stage import StageRun

if TYPE_CHECKING:
    from adamatch_ray.model_config import PVTConfig


def main(arguments: Sequence[str]) -> dict[str, Any] | None:
    """Train on the workers, then commit the best checkpoint's model."""
    run = StageRun(parse_command_line(arguments, __doc__ or ""), "encoder")
    if (answer := run.begin(lambda init: _check(run, init))) is not None:
        return answer
    from adamatch_ray.train.fit_encoder import EncoderFitter
    from adamatch_ray.train.launch import fit_stage

    return fit_stage(run, partial(EncoderFitter, image=_image(run)), "auroc")


def _image(run: StageRun) -> "PVTConfig":
    from adamatch_ray.models.adamatch import image_config
    from adamatch_ray.schema import CHEXPERT_LABELS

    return replace(image_config(run.config.image, run.config.adamatch), num_classes=len(CHEXPERT_LABELS))


def _check(run: StageRun, init: str) -> None:
    """Refuse a published file that does not fit the encoder."""
    from adamatch_ray.models.pvt_published import check_published

    check_published(init, _image(run))


if __name__ == "__main__":
    run_as_command(main)
