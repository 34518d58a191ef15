"""Built-in phantoms to try the service with. Synthetic, drawn here; no training run of the presets sees them."""

from functools import cache
from typing import NamedTuple

from adamatch_ray.data.images import encode_png
from adamatch_ray.data.phantom import generate
from serve.protocol import ImageSize, Sample

_SEED = 2_026
_SIDE = 640
_CHOSEN = (1, 39, 24, 4, 27, 0)


class Drawn(NamedTuple):
    """A sample and its picture."""

    sample: Sample
    png: bytes


@cache
def samples() -> dict[str, Drawn]:
    """All samples by their id."""
    return {f"phantom-{index}": _draw(index) for index in _CHOSEN}


def _draw(index: int) -> Drawn:
    study = generate(index, _SEED, _SIDE)
    height, width = study.image.shape
    sample = Sample(
        id=f"phantom-{index}",
        url=f"v1/samples/phantom-{index}.png",
        report=" ".join(part for part in (study.findings, study.impression) if part),
        findings=sorted({box.name for box in study.boxes}),
        boxes=[(box.x0, box.y0, box.x1, box.y1) for box in study.boxes],
        image=ImageSize(width=width, height=height),
    )
    return Drawn(sample, encode_png(study.image))
