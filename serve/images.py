"""An uploaded X-ray to the canvas the models see; `decode` compares what a header promises with the limits first."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from adamatch_ray.data.images import decode, to_canvas
from adamatch_ray.data.pixels import BadImage, NotAnImage, TooManyPixels
from adamatch_ray.geometry import CanvasImage
from serve.problems import Problem


class Decoder:
    """Decodes uploads in a few threads; one that takes too long keeps its thread until it ends, but not its client."""

    def __init__(self, canvas: int, max_pixels: int, timeout_s: float, threads: int = 2) -> None:
        self._canvas, self._max_pixels, self._timeout = canvas, max_pixels, timeout_s
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    async def __call__(self, data: bytes) -> CanvasImage:
        """The canvas of an upload. Raises Problem 413 (too many pixels), 415 (no image), 422 or 504."""
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._pool, read_image, data, self._canvas, self._max_pixels)
        try:
            return await asyncio.wait_for(work, self._timeout)
        except TimeoutError as error:
            raise Problem(504, "decoding the image took too long") from error


def read_image(data: bytes, canvas: int, max_pixels: int) -> CanvasImage:
    """Check, decode and place an upload. Raises Problem."""
    try:
        decoded = decode(data, canvas, max_pixels)
        return CanvasImage(to_canvas(decoded, canvas), decoded.height, decoded.width)
    except BadImage as error:
        status = 413 if isinstance(error, TooManyPixels) else 415 if isinstance(error, NotAnImage) else 422
        raise Problem(status, f"this X-ray cannot be used: {error}") from error
