"""AdaMatch's hints for all studies that the language model is tuned or selected on, made by Ray Data's actors."""

from functools import partial

from adamatch_ray.engines.hints import HintCache
from adamatch_ray.stages import StageRun
from adamatch_ray.train.actors import make_shards

SPLITS = ("train", "validate")


def make_hints(run: StageRun) -> dict[str, int]:
    """Make the missing hint shards; rows by file within the stage."""
    studies = run.root.stage("studies").require()
    wanted = {name: rows for name, rows in studies.files.items() if rows and name.startswith(SPLITS)}
    config, shown = run.config, run.config.llm.instructions
    device = "cuda" if config.scale.gpu else "cpu"
    counts = {"keywords": shown.keywords, "keypatches": shown.keypatches}
    maker = partial(HintCache, run.root.uri, device, config.evaluate.batch_size, **counts)
    files = {shard.file: shard.rows for shard in make_shards(sorted(wanted), maker, config.scale, "llm hints")}
    assert files == wanted, "hints have other rows than the studies"
    return {f"hints/{name}": rows for name, rows in sorted(files.items())}
