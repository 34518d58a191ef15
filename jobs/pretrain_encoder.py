"""usage: python jobs/pretrain_encoder.py [options]

Pre-train the image encoder by classifying 14 findings, as the paper does before AdaMatch.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from adamatch_ray.cli import parse_command_line, run_as_command
from adamatch_ray.stage import StageRun


def main(arguments: Sequence[str]) -> dict[str, Any] | None:
    """Train on the workers, then commit the best checkpoint's model."""
    run = StageRun(parse_command_line(arguments, __doc__ or ""), "encoder")
    if (answer := run.begin()) is not None:
        return answer
    from adamatch_ray.models.adamatch import image_config
    from adamatch_ray.schema import CHEXPERT_LABELS
    from adamatch_ray.train.fit_encoder import EncoderFitter
    from adamatch_ray.train.launch import fit_stage

    image = replace(image_config(run.config.image, run.config.adamatch), num_classes=len(CHEXPERT_LABELS))
    return fit_stage(run, partial(EncoderFitter, image=image), "auroc")


if __name__ == "__main__":
    run_as_command(main)
