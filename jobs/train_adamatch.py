"""usage: python jobs/train_adamatch.py [options]

Train AdaMatch on `studies/`, from the encoder of `encoder/`; either stage is made first when it is missing and can be.
"""

from collections.abc import Sequence
from typing import Any

from adamatch_ray.cli import parse_command_line, run_as_command
from adamatch_ray.stage import StageRun


def main(arguments: Sequence[str]) -> dict[str, Any] | None:
    """Train on the workers, then commit the best checkpoint's model."""
    run = StageRun(parse_command_line(arguments, __doc__ or ""), "adamatch")
    if (answer := run.begin(lambda init: _check(run, init))) is not None:
        return answer
    from adamatch_ray.train.fit_adamatch import AdaMatchFitter, prepare_tokenizer
    from adamatch_ray.train.launch import fit_stage

    prepare_tokenizer(run.root, run.config.text)
    return fit_stage(run, AdaMatchFitter, "image_to_text@1")


def _check(run: StageRun, init: str) -> None:
    """Refuse a published file that does not fit the image encoder."""
    from adamatch_ray.models.adamatch import image_config
    from adamatch_ray.models.pvt_published import check_published

    check_published(init, image_config(run.config.image, run.config.adamatch))


if __name__ == "__main__":
    run_as_command(main)
