"""How fast X-rays become canvases, and shards become batches, beside what people usually write.

Decoding: a radiograph of full size to the 256 canvas, against Pillow's decode to RGB and Lanczos resize. Loading: the
batches of training through Ray Data, against `torch.utils.data.DataLoader` with one worker process on the same shards,
decoding the same windows to the same batches. Both are asserted to give equal results before anything is timed.
"""

import io
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from skimage.metrics import peak_signal_noise_ratio
from torch.utils.data import DataLoader, IterableDataset

from adamatch_ray.config import DataConfig
from adamatch_ray.data import images, loading, phantom
from adamatch_ray.geometry import Geometry
from adamatch_ray.pipeline import studies as preparing
from adamatch_ray.storage import Manifest, Root
from benchmarks.measure import Row, Timing, cpu_seconds_of, family, median_timing, row, time_in_turns

LEAST_PSNR = 52.0
"""dB between the scaled decode and a Lanczos resize of the whole image; below it they are not the same picture."""


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    height: int = 3056
    width: int = 2544
    radiographs: int = 4
    canvases: tuple[int, ...] = (128, 256)
    phantoms: int = 256
    copies: int = 8
    rows_per_shard: int = 128
    batch_size: int = 64
    window: int = 2048
    windows: int = 6
    repeats: int = 5


FULL = Scale()
QUICK = Scale(height=764, width=636, radiographs=1, canvases=(32,), phantoms=32, copies=2, rows_per_shard=16,
              batch_size=8, window=32, windows=4, repeats=1)  # fmt: skip


def rows(scale: Scale = FULL) -> list[Row]:
    """Every figure of the ingest: decoding, then loading at each canvas, in CPU seconds and in wall seconds."""
    table = [decode_row(scale)]
    for canvas in scale.canvases:
        with tempfile.TemporaryDirectory() as folder:
            write_stage(folder, scale, canvas)
            table += loader_rows(folder, scale, canvas)
    return table


def decode_row(scale: Scale, canvas: int = 256) -> Row:
    """CPU seconds an image. Raises RuntimeError where the two canvases differ by more than `LEAST_PSNR` allows."""
    files = [radiograph(index, scale.height, scale.width) for index in range(scale.radiographs)]
    ours = [images.to_canvas(images.decode(data, max_side=canvas), canvas) for data in files]
    usual = (_usual_canvas(data, canvas) for data in files)
    psnr = min(peak_signal_noise_ratio(*pair) for pair in zip(usual, ours, strict=True))
    if psnr < LEAST_PSNR:
        raise RuntimeError(f"the canvases differ: {psnr:.1f} dB, {LEAST_PSNR} dB are needed; nothing is timed")
    seconds = time_in_turns(
        {
            "ours": lambda: [images.to_canvas(images.decode(data, max_side=canvas), canvas) for data in files],
            "peer": lambda: [_usual_canvas(data, canvas) for data in files],
        },
        scale.repeats,
    )
    each = {name: timing.cpu_s / len(files) for name, timing in seconds.items()}
    return row(
        f"decode a {scale.width} x {scale.height} JPEG to the {canvas} canvas",
        "CPU seconds",
        each["ours"],
        each["peer"],
        packages=("pillow", "simplejpeg"),
        peer_name="Pillow to RGB, Lanczos",
        psnr_db=round(float(psnr), 2),
        megabytes=round(sum(map(len, files)) / len(files) / 1e6, 2),
    )


def radiograph(index: int, height: int, width: int) -> bytes:
    """A gray JPEG of that size and about 1.4 MB: an enlarged phantom with the noise of a detector."""
    # The phantom's own noise, enlarged with it, would be coarser than any detector's.
    drawn = Image.fromarray(phantom.generate(index, seed=0, side=640).image).filter(ImageFilter.GaussianBlur(1))
    smooth = np.asarray(drawn.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    noise = np.random.default_rng(index).standard_normal((height, width), np.float32)
    stream = io.BytesIO()
    Image.fromarray(np.clip(smooth + 3 * noise, 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=92)
    return stream.getvalue()


def _usual_canvas(data: bytes, canvas: int) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        whole = image.convert("RGB")
    geometry = Geometry(whole.height, whole.width, canvas)
    inner = whole.resize((geometry.inner_width, geometry.inner_height), Image.Resampling.LANCZOS)
    placed = np.zeros((canvas, canvas), np.uint8)
    placed[geometry.top : geometry.top + inner.height, geometry.left : geometry.left + inner.width] = np.asarray(
        inner.convert("L")
    )
    return placed


def write_stage(root: str, scale: Scale, canvas: int) -> None:
    """A finished `studies/` stage of phantoms, each shard there `copies` times: speed does not tell them apart."""
    config = DataConfig(source="phantom", phantoms=scale.phantoms, canvas=canvas, rows_per_shard=scale.rows_per_shard)
    listed = [{**row, "split": "train"} for row in phantom.list_phantoms(scale.phantoms, config.seed)]
    stage = Root(root).stage("studies")
    files: dict[str, int] = {}
    for shard in preparing.plan(listed, config)[0]:
        accepted = preparing.StudyShards(config, root).make(shard).rows
        data = stage.read_bytes(shard.file)
        for copy in range(scale.copies):
            name = f"train/part-{shard.number:05d}-{copy}.parquet"
            stage.write_bytes(name, data)
            files[name] = accepted
    stage.commit(Manifest("studies", "benchmark", {}, {}, {"train": sum(files.values())}, files))


def loader_rows(root: str, scale: Scale, canvas: int) -> list[Row]:
    """Studies a second, in CPU seconds of all processes and in wall seconds, in the steady state.

    A run is timed from its first batch to the first batch of its last window, so what a loader has read ahead counts
    at neither end or at both. The consumer only counts.
    """
    if _digest(_our_batches(root, scale)) != _digest(_usual_batches(root, scale)):
        raise RuntimeError(f"the loaders' batches differ at canvas {canvas}: nothing is timed")
    seen: dict[str, list[Timing]] = {"ours": [], "peer": []}
    for _ in range(scale.repeats):
        # Ray's processes go on living while the peer runs; what they do then is not the peer's cost.
        resting = family() - {os.getpid()}
        seen["peer"].append(_drain(_usual_batches(root, scale), scale, resting))
        seen["ours"].append(_drain(_our_batches(root, scale), scale, frozenset()))
    ours, peer = (median_timing(seen[name]) for name in ("ours", "peer"))
    studies = _steps_between(scale) * scale.batch_size
    common: dict[str, Any] = {
        "more_is_better": True,
        "packages": ("ray", "torch", "pyarrow", "pillow"),
        "peer_name": "torch DataLoader, one worker",
        "shards": f"{scale.phantoms * scale.copies} studies, {scale.rows_per_shard} a shard",
        "window": scale.window,
        "batch_size": scale.batch_size,
    }
    return [
        row(f"load canvases of {canvas}, {what}", f"studies a {what} second", studies / mine, studies / other, **common)
        for what, mine, other in (("CPU", ours.cpu_s, peer.cpu_s), ("wall", ours.wall_s, peer.wall_s))
    ]


def _our_batches(root: str, scale: Scale) -> Iterator[loading.Batch]:
    shards = loading.list_shards(Root(root).stage("studies"), "train")
    return loading.training_batches(
        root,
        shards,
        batch_size=scale.batch_size,
        world=1,
        rank=0,
        seed=0,
        start_step=0,
        total_steps=_steps(scale),
        window=scale.window,
    )


def _usual_batches(root: str, scale: Scale) -> Iterator[loading.Batch]:
    # Whole batches travel as tensors in shared memory, which is the fastest that a DataLoader can do.
    return iter(DataLoader(_Shards(root, scale), batch_size=None, num_workers=1, prefetch_factor=4))


class _Shards(IterableDataset[loading.Batch]):
    """Reads the shards of a window, shuffles their rows and decodes them batch by batch."""

    def __init__(self, root: str, scale: Scale) -> None:
        self.root, self.scale = root, scale

    def __iter__(self) -> Iterator[loading.Batch]:
        size = self.scale.batch_size
        rest: pa.Table | None = None
        for window in self._windows():
            table = pa.concat_tables([pq.read_table(path, columns=list(loading.COLUMNS)) for path in window.paths])
            order = np.random.default_rng(window.seed).permutation(table.num_rows)[window.start : window.stop]
            table = table.take(pa.array(order))
            table = table if rest is None else pa.concat_tables([rest, table])
            whole = table.num_rows // size * size
            for start in range(0, whole, size):
                yield loading.to_batch(table.slice(start, size))
            rest = table.slice(whole)

    def _windows(self) -> Iterator[loading.Window]:
        shards = loading.list_shards(Root(self.root).stage("studies"), "train")
        per_epoch = loading.steps_per_epoch(shards, self.scale.batch_size, 1)
        for epoch in range(-(-_steps(self.scale) // per_epoch)):
            yield from loading.plan_windows(
                shards,
                batch_size=self.scale.batch_size,
                world=1,
                rank=0,
                seed=0,
                epoch=epoch,
                skip=0,
                window=self.scale.window,
            )


def _steps(scale: Scale) -> int:
    return scale.windows * scale.window // scale.batch_size


def _steps_between(scale: Scale) -> int:
    return (scale.windows - 2) * scale.window // scale.batch_size


def _drain(batches: Iterator[loading.Batch], scale: Scale, resting: frozenset[int]) -> Timing:
    """Consume all batches; the time between the first batches of the second and of the last window."""
    begin = scale.window // scale.batch_size
    marks = []
    for step, _ in enumerate(batches):
        if step in (begin, begin + _steps_between(scale)):
            marks.append(Timing(time.perf_counter(), cpu_seconds_of(family() - resting)))
    assert len(marks) == 2 and step + 1 == _steps(scale), (len(marks), step)
    return Timing(marks[1].wall_s - marks[0].wall_s, marks[1].cpu_s - marks[0].cpu_s)


def _digest(batches: Iterator[loading.Batch]) -> str:
    digest = sha256()
    for batch in batches:
        digest.update(np.asarray(batch["image"]).tobytes())
        digest.update(np.asarray(batch["labels"]).tobytes())
        digest.update("\n".join([*batch["report"], *batch["study_id"]]).encode())
    return digest.hexdigest()
