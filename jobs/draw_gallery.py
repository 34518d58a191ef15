"""usage: python jobs/draw_gallery.py [options]

Draw studies of a split with the regions their words matched, as one page and as PNGs, to <root>/gallery/.
"""

import sys
import time
from collections.abc import Sequence
from typing import Any

from adamatch_ray.cli import parse_command_line, run_as_command
from adamatch_ray.storage import Root, Stage


def main(arguments: Sequence[str]) -> dict[str, Any] | None:
    """Match the first studies of a split and write `gallery/index.html` and two PNGs a study."""
    command = parse_command_line(arguments, __doc__ or "")
    options, root = command.config.gallery, Root(command.root)
    target = Stage(root, "gallery")
    if command.dry_run:
        print(f"# {options.studies} {options.split} studies -> {target.uri}")
        return {"stage": "gallery", "status": "planned", "output": target.uri, "seconds": 0.0}
    started = time.monotonic()
    from adamatch_ray.codebooks import VisualCodebook
    from adamatch_ray.data import loading
    from adamatch_ray.engines.matching import MatchingEngine
    from adamatch_ray.pages.drawing import draw_study
    from adamatch_ray.pages.gallery import render_page
    from adamatch_ray.pages.view import spotlight, view_studies

    engine = MatchingEngine.load(root, "cuda" if command.config.scale.gpu else "cpu")
    codebook = VisualCodebook.load(root.stage("codebooks"), crops=True)
    studies = loading.first_studies(root.stage("studies"), options.split, options.studies).to_pylist()
    views = view_studies(engine, codebook, studies)
    for number, view in enumerate(views, start=1):
        words = [view.words[n] for n in spotlight(view.words, engine.entity_words)]
        keywords = [view.keywords[n] for n in spotlight(view.keywords)]
        target.write_bytes(f"{number:03d}-words.png", draw_study(view, words, "words of the report"))
        target.write_bytes(f"{number:03d}-keywords.png", draw_study(view, keywords, "keywords of the image"))
        print(f"gallery: {number} of {len(views)} studies drawn", file=sys.stderr)
    page = render_page(views, "Which region for which word", engine.entity_words)
    target.write_bytes("index.html", page.encode())
    seconds = round(time.monotonic() - started, 1)
    output = f"{target.uri}/index.html"
    return {"stage": "gallery", "status": "done", "output": output, "seconds": seconds, "studies": len(views)}


if __name__ == "__main__":
    run_as_command(main)
