"""A shard of studies to a shard of image tokens, whole or not at all (docs/method.md 3; the `cache_tokens` job)."""

from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from adamatch_ray.data.images import Pixels, decode_png
from adamatch_ray.engines.image_tokens import ImageTokenizer, fingerprint
from adamatch_ray.engines.loader import load_vqgan
from adamatch_ray.schema import TOKENS
from adamatch_ray.shards import MadeShard, identity_of, make_shard
from adamatch_ray.storage import Root

CHUNK = 128
"""Images decoded together; the next ones are decoded while these are encoded."""


class TokenCache:
    """Writes `tokens/` shards from `studies/` shards of the same names with the model of `vqgan/`.

    A shard depends on its input and the model alone, not on who makes it or when. Its footer names both, so one that
    is there is not made again, and one of another model or other studies is replaced.
    """

    def __init__(
        self, root: str, device: str = "cpu", *, precision: Literal["fp32", "bf16"] = "fp32", batch_size: int = 0,
        threads: int = 2,
    ) -> None:  # fmt: skip
        """Raises ValueError while `studies/` or `vqgan/` is unfinished. `threads` decode images."""
        stages = Root(root)
        self.studies, self.tokens = stages.stage("studies"), stages.stage("tokens")
        model = load_vqgan(stages)
        self.model = fingerprint(model)
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        self.tokenizer = ImageTokenizer(model, device, batch_size=batch_size, dtype=dtype)
        self.maker = [self.model, self.studies.require().fingerprint, precision]
        self.pool = ThreadPoolExecutor(threads)

    def make(self, file: str) -> MadeShard:
        """Make the token shard of one studies shard, unless it is there."""
        return make_shard(self.tokens, file, identity_of(self.maker, file), lambda: self._table(file))

    def _table(self, file: str) -> pa.Table:
        *names, image = self.studies.read_table(file, ["study_id", "dicom_id", "split", "image"]).columns
        columns = [*names, *self._values(self._encode(image.to_pylist()))]
        return pa.Table.from_arrays(columns, schema=TOKENS.with_metadata({"model": self.model}))

    def _encode(self, encoded: list[bytes]) -> NDArray[np.uint16]:
        chunks = [encoded[start : start + CHUNK] for start in range(0, len(encoded), CHUNK)]
        return np.concatenate([self.tokenizer.encode(images) for images in self.pool.map(_decode, chunks)])

    def _values(self, tokens_IT: NDArray[np.uint16]) -> list[pa.Array]:
        count, length = tokens_IT.shape
        offsets = pa.array(np.arange(0, count * length + 1, length, dtype=np.int32))
        lists = pa.ListArray.from_arrays(offsets, pa.array(tokens_IT.ravel()))
        return [lists, pa.array([self.model] * count, pa.string())]


def _decode(encoded: list[bytes]) -> Pixels:
    return np.stack([decode_png(data) for data in encoded])
