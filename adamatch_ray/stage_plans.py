"""The sums of a plan, stage by stage (see `plan` for what goes in and how it is shown).

The models count themselves (`counting`); besides, only counts, sizes and the rates named here go in, so every line can
be checked with a pocket calculator. The rates are assumptions until a run has been measured.
"""

from collections.abc import Callable
from typing import NamedTuple

from adamatch_ray import counting
from adamatch_ray.config import RunConfig
from adamatch_ray.counting import Counted, CountedLLM
from adamatch_ray.models.adamatch import AdaMatchSizes, image_config
from adamatch_ray.models.place_head import PlaceSizes
from adamatch_ray.plan import Counts, Hardware, Plan, clock, short, size
from adamatch_ray.training_config import TrainConfig

REPORT_TOKENS, PROMPT_TOKENS = 100, 100
"""Assumed mean lengths in tokens: of a report; of a prompt's preamble, instruction, keys and keywords."""
DECODE_RATE, PHANTOM_RATE = 69.0, 45.0
"""Studies that one core stores in a second, measured: full-size JPEGs (14.5 ms each), drawn phantoms."""
STORED_BYTES = 0.55
"""Bytes of a stored canvas for each of its pixels (PNG), with its share of the other columns."""
NETWORK, CONTEXT_BYTES = 1e9, 1.5e9
"""Assumed: bytes a second from or to storage; bytes that torch, its kernels and its allocator's gaps take."""


def plan_stage(stage: str, config: RunConfig, counts: Counts, hardware: Hardware) -> Plan:
    """The plan of one stage. Raises ValueError when a published model's sizes are not known here."""
    return PLANS[stage](config, counts, hardware)


def _studies(config: RunConfig, counts: Counts, hardware: Hardware) -> Plan:
    cores = max(1.0, config.scale.workers * config.scale.cpus_per_worker) if config.scale.gpu else 2
    phantom, studies = config.data.source == "phantom", counts.all
    rate, file = (PHANTOM_RATE, 0.0) if phantom else (DECODE_RATE, 1.46e6)
    work, read = studies / (cores * rate), studies * file / NETWORK
    stored = studies * config.data.canvas**2 * STORED_BYTES
    lines = (
        f"studies    train {counts.train:,} + validate {counts.validate:,} + test {counts.test:,} = {studies:,} "
        f"({counts.source})",
        f"cores      {studies:,} / ({cores:g} cores x {rate:g} a second) = {clock(work)}",
        f"reading    {studies:,} x {size(file)} / {size(NETWORK)}/s = {clock(read)}",
        f"storage    {studies:,} x {config.data.canvas}^2 pixels x {STORED_BYTES} B = {size(stored)}",
    )
    limit = "reading from storage" if read > work else "drawing on the cores" if phantom else "decoding on the cores"
    return Plan("studies", max(work, read), 2e9, stored, limit, lines)


def _encoder(config: RunConfig, counts: Counts, hardware: Hardware) -> Plan:
    model = counting.encoder(image_config(config.image, config.adamatch))
    lines = [f"parameters {short(model.parameters)}", f"operations {short(model.operations)} forward an image"]
    return _training("encoder", config, counts, hardware, model, lines)


def _adamatch(config: RunConfig, counts: Counts, hardware: Hardware) -> Plan:
    image, text = _sides(config)
    options, patches, words = config.adamatch, _patches(config), _words(config)
    together = options.train.batch_size * (config.scale.workers if options.negatives == "global" else 1)
    match_ops = 2 * together * patches * words * options.dim
    parameters, operations, kept = (of_image + of_text for of_image, of_text in zip(image, text, strict=True))
    model = Counted(parameters, operations + match_ops, kept)
    lines = [
        f"parameters image {short(image.parameters)} + text {short(text.parameters)} = {short(model.parameters)}",
        f"operations image {short(image.operations)} + text {short(text.operations)} ({words} word pieces) + matching "
        f"2 x {together} reports x {patches} patches x {words} words x {options.dim} = {short(match_ops)}; "
        f"forward {short(model.operations)} a study",
    ]
    return _training("adamatch", config, counts, hardware, model, lines)


def _place(config: RunConfig, counts: Counts, hardware: Hardware) -> Plan:
    if config.place.head == "none":
        return Plan("place", 0.0, 0.0, 0.0, "nothing is trained", ("the patches alone tell where a word is",))
    sizes = PlaceSizes.of(config.image, config.adamatch.dim, config.place.width, config.place.dim)
    head, (image, text) = counting.place(image_config(config.image, config.adamatch), sizes), _sides(config)
    frozen = image.operations + text.operations
    model = head._replace(operations=head.operations + frozen // 3)
    lines = [
        f"parameters {short(head.parameters)}",
        f"operations {short(head.operations)} + a third of the frozen AdaMatch's {short(frozen)}: forward only",
    ]
    return _training("place", config, counts, hardware, model, lines)


def _training(
    stage: str, config: RunConfig, counts: Counts, hardware: Hardware, model: Counted, lines: list[str]
) -> Plan:
    """Data-parallel training: every worker holds all weights; forward once, backward twice the operations."""
    train: TrainConfig = getattr(config, stage).train
    workers, batch, parameters, forward = config.scale.workers, train.batch_size, model.parameters, model.operations
    value = 2 if config.scale.gpu and train.precision != "fp32" else 4
    kept = value * model.kept
    peak = hardware.fp32 if train.precision == "fp32" else hardware.bf16
    per_epoch = counts.train // (batch * workers)
    steps = min(train.max_steps or per_epoch * train.epochs, per_epoch * train.epochs)
    step_s = 3 * forward * batch / (peak * hardware.train_share)
    work = steps * step_s
    loading = steps * batch / (config.scale.loaders * 1_217 * (256 / config.data.canvas) ** 2)
    memory = 16 * parameters + kept * batch + CONTEXT_BYTES
    stored = 2 * 12 * parameters + 4 * parameters
    lines = [
        *lines,
        f"steps      {counts.train:,} // ({batch} x {workers} workers) = {per_epoch:,} an epoch, {steps:,} in all",
        f"a step     3 x {short(forward)} x {batch} / ({peak / 1e12:g} T/s x {hardware.train_share}) = {step_s:.3g} s",
        f"loading    {steps:,} x {batch} / ({config.scale.loaders} loaders x 1,217 a second at 256 pixels) "
        f"= {clock(loading)}",
        f"memory     16 B x {short(parameters)} + {size(kept)} kept x {batch} + {size(CONTEXT_BYTES)} = {size(memory)}",
        f"storage    2 checkpoints x 12 B + model 4 B, x {short(parameters)} = {size(stored)}",
    ]
    limit = "loading" if loading > work else f"arithmetic on the {hardware.name}"
    return Plan(stage, max(work, loading), memory, stored, limit, tuple(lines))


def _codebooks(config: RunConfig, counts: Counts, hardware: Hardware) -> Plan:
    image, text = _sides(config)
    ner = counting.finder(config.codebooks.ner, _words(config)).operations if config.codebooks.backend == "ner" else 0
    each = ner + image.operations + text.operations
    peak = hardware.fp32 * hardware.encode_share
    work = counts.train * each / (config.scale.workers * peak)
    stored = config.codebooks.keypatches * (4 * config.adamatch.dim + 200)
    lines = (
        f"operations entities {short(ner)} + image {short(image.operations)} + report "
        f"{short(text.operations)} = {short(each)} a study",
        f"time       {counts.train:,} x {short(each)} / ({config.scale.workers} workers x {peak / 1e12:.3g} T/s fp32)",
        f"storage    {config.codebooks.keypatches:,} keypatches x (4 B x {config.adamatch.dim} + 200 B)",
    )
    return Plan("codebooks", work, 4e9, stored, f"arithmetic on the {hardware.name}", lines)


def _vqgan(config: RunConfig, counts: Counts, hardware: Hardware) -> Plan:
    encode, decode = counting.vqgan(config.vqgan)
    model = decode._replace(operations=encode.operations + decode.operations)
    lines = [
        f"parameters {short(model.parameters)}",
        f"operations encode {short(encode.operations)} + decode {short(decode.operations)} an image, judges left out",
    ]
    if config.vqgan.train.epochs == 0:
        weights = 4 * model.parameters
        return Plan("vqgan", 0.0, weights, weights, "nothing is trained", tuple(lines))
    return _training("vqgan", config, counts, hardware, model, lines)


def _tokens(config: RunConfig, counts: Counts, hardware: Hardware) -> Plan:
    parameters, encode, _ = counting.vqgan(config.vqgan)[0]
    peak = (hardware.fp32 if config.tokens.precision == "fp32" else hardware.bf16) * hardware.encode_share
    work = counts.all * encode / (config.scale.workers * peak)
    batch = config.tokens.batch_size or (64 if config.scale.gpu else 1)
    memory = 4 * parameters + batch * _picture_bytes(config)
    stored = counts.all * (2 * config.vqgan.tokens + 100)
    lines = (
        f"time       {counts.all:,} x {short(encode)} / ({config.scale.workers} workers x {peak / 1e12:.3g} T/s "
        f"{config.tokens.precision})",
        f"memory     4 B x {short(parameters)} + {batch} images x 4 maps x "
        f"{config.vqgan.ch} x {config.vqgan.image_size}^2 x 4 B",
        f"storage    {counts.all:,} x (2 B x {config.vqgan.tokens} tokens + 100 B)",
    )
    return Plan("tokens", work, memory, stored, f"arithmetic on the {hardware.name}", lines)


def _llm(config: RunConfig, counts: Counts, hardware: Hardware) -> Plan:
    model, train, spread = _language_model(config), config.llm.train, config.llm.deepspeed
    parameters, batch, workers = model.parameters, train.batch_size, config.scale.workers_of("llm")
    length = min(model.shape.max_position_embeddings, PROMPT_TOKENS + config.vqgan.tokens + REPORT_TOKENS)
    # Adapters on the matrices of a layer; both ends are tuned for their new rows.
    matrices = config.llm.lora.rank * model.adapters or model.matrices
    trained = matrices + model.ends if config.llm.lora.rank else parameters
    muon = matrices if train.muon_lr > 0 else 0
    share = zero_bytes(trained, workers, spread.stage, spread.offload_optimizer == "cpu", muon)
    share += 2 * (parameters - trained) / (workers if spread.stage == 3 else 1)
    edge, inside, layers = 2 * length * model.shape.hidden_size, 2 * length * model.kept, model.shape.num_hidden_layers
    kept = batch * (edge * layers + inside if config.llm.gradient_checkpointing else inside * layers)
    logits = batch * config.vqgan.tokens * model.shape.vocab_size * 6
    memory = share + kept + logits + CONTEXT_BYTES
    together = batch * workers * spread.accumulate
    per_epoch = 2 * counts.train // together
    steps = min(train.max_steps or per_epoch * train.epochs, per_epoch * train.epochs)
    step_s = 6 * parameters * length * batch * spread.accumulate / (hardware.bf16 * hardware.llm_share)
    stored = 2 * (2 * parameters + 12 * trained - 6 * muon) + 2 * parameters
    lines = (
        f"parameters {short(parameters)}, {short(trained)} of them tuned, {short(muon)} with Muon",
        f"record     {PROMPT_TOKENS} prompt + {config.vqgan.tokens} image + {REPORT_TOKENS} report = {length} tokens",
        f"steps      2 x {counts.train:,} // {together} records = {per_epoch:,} an epoch, {steps:,} in all",
        f"a step     6 x {short(parameters)} x {length} x {batch * spread.accumulate} / "
        f"({hardware.bf16 / 1e12:g} T/s x {hardware.llm_share}) = {step_s:.3g} s",
        f"memory     ZeRO-{spread.stage} over {workers}: {size(share)} + activations {size(kept)} + logits "
        f"{batch} x {config.vqgan.tokens} x {model.shape.vocab_size:,} x 6 B = {size(logits)} + {size(CONTEXT_BYTES)} "
        f"= {size(memory)}",
        f"storage    2 checkpoints x (2 B x {short(parameters)} + 12 B x {short(trained)} - 6 B x "
        f"{short(muon)}) + model 2 B x {short(parameters)} = {size(stored)}",
    )
    return Plan("llm", steps * step_s, memory, stored, f"arithmetic on the {hardware.name}", lines)


def zero_bytes(parameters: int, workers: int, stage: int, offloaded: bool = False, muon: int = 0) -> float:
    """Bytes of weights, gradients and optimiser on one of `workers` GPUs: 2 + 2 + 12 a parameter, split by ZeRO stage.

    Stage 1 splits the optimiser's 12 (fp32 weights and two moments), 2 the gradients too, 3 the weights too. Of the
    parameters `muon` take 8: beside the fp32 weights one momentum in bf16, which DeepSpeed holds twice.
    """
    optimizer = 0.0 if offloaded else 12.0 * parameters - 4.0 * muon
    parts = {1: optimizer, 2: 2.0 * parameters, 3: 2.0 * parameters}
    return sum(part / (workers if stage >= splits else 1) for splits, part in parts.items())


class Decoding(NamedTuple):
    """Bytes of a batch that is answered: what stays, then what reading the prompts takes, or the answers at most."""

    weights: float
    folded: float
    prompts: float
    reading: float
    cache: float
    moved: float

    @property
    def most(self) -> float:
        """Bytes at the fullest moment."""
        return self.weights + self.folded + max(self.prompts + self.reading, self.cache + self.moved)


def decoding_bytes(model: CountedLLM, rows: int, prompt: int, answer: int, value: int, folds: bool) -> Decoding:
    """Memory of `rows` prompts of so many tokens, each answered by `answer` more; `value` bytes a value.

    The cache grows with the answers, layer by layer: a layer is held twice (by transformers its keys, then its values).
    """
    cache = rows * (prompt + answer) * model.cached * value
    return Decoding(
        weights=model.parameters * value,
        folded=model.folded * value if folds else 0,
        prompts=rows * prompt * model.cached * value,
        reading=rows * prompt * 12 * model.shape.hidden_size * value,  # state, attention and the fourfold MLP, twice
        cache=cache,
        moved=cache / model.shape.num_hidden_layers / (1 if folds else 2),
    )


def _generations(config: RunConfig, counts: Counts, hardware: Hardware) -> Plan:
    model, options = _language_model(config), config.generate
    studies: int = getattr(counts, options.split)
    studies = min(studies, options.limit or studies)
    ways = 2 if options.direction == "both" else 1
    image, report = config.vqgan.tokens, REPORT_TOKENS
    steps = image + report if options.cycle else max(image, report)
    value = 2 if config.scale.gpu and config.llm.dtype != "float32" else 4
    rows = options.beams if options.beams > 1 else options.batch_size
    folds = options.decoder == "folded" or (options.decoder == "auto" and not config.scale.gpu and model.folded > 0)
    prompts = {
        "cxr_to_report": (PROMPT_TOKENS + image, options.report_tokens),
        "report_to_cxr": (PROMPT_TOKENS + report + config.llm.instructions.keypatch_tokens, image),
    }
    used = [prompts[way] for way in prompts if options.cycle or options.direction in ("both", way)]
    held = [
        decoding_bytes(model, rows, p, min(a, model.shape.max_position_embeddings - p), value, folds) for p, a in used
    ]
    (prompt, _), fullest = max(zip(used, held, strict=True), key=lambda pair: pair[1].most)
    others = 4 * (sum(side.parameters for side in _sides(config)) + counting.vqgan(config.vqgan)[0].parameters)
    pictures = (64 if config.scale.gpu else 1) * _picture_bytes(config)
    memory = others + max(fullest.most, fullest.weights + fullest.folded + pictures) + CONTEXT_BYTES
    token = model.cached * value
    mean = decoding_bytes(model, rows, PROMPT_TOKENS + image, report, value, folds)
    step_s = (mean.weights + mean.cache) / (hardware.bandwidth * hardware.read_share)
    answers = ways * studies
    work = answers / (config.scale.workers * options.batch_size) * steps * step_s
    stored = answers * (2 * config.vqgan.image_size**2 * STORED_BYTES + 4_000)
    lines = (
        f"answers    {ways} direction(s) x {studies:,} studies = {answers:,}, {steps} tokens each",
        f"a step     (weights {size(mean.weights)} + cache {rows} x {round(mean.cache / rows / token)} tokens x "
        f"{size(token)} = {size(mean.cache)}) / ({size(hardware.bandwidth)}/s x "
        f"{hardware.read_share}) = {step_s * 1e3:.3g} ms",
        f"time       {answers:,} / ({config.scale.workers} workers x {options.batch_size}) x {steps} steps",
        f"reading    {rows} prompts x {prompt} tokens: cache {size(fullest.prompts)} + states {size(fullest.reading)}",
        f"answering  {rows} x {round(fullest.cache / rows / token)} tokens at most: cache {size(fullest.cache)} + a "
        f"layer twice {size(fullest.moved)}; drawing, then without a cache, {size(pictures)}",
        f"memory     weights {size(fullest.weights)} + folded copy {size(fullest.folded)} + the fullest of these + "
        f"AdaMatch and VQ-GAN {size(others)} + {size(CONTEXT_BYTES)} = {size(memory)}",
    )
    return Plan("generations", work, memory, stored, "reading weights and cache from memory", lines)


def _metrics(config: RunConfig, counts: Counts, hardware: Hardware) -> Plan:
    studies: int = getattr(counts, config.evaluate.split)
    patches, words = _patches(config), _words(config)
    pairs = 2 * studies**2 * patches * words * config.adamatch.dim
    embed = studies * _sides(config)[0].operations
    work = (pairs + embed) / (hardware.fp32 * hardware.encode_share)
    lines = (
        f"pairs      2 x {studies:,}^2 x {patches} patches x {words} words x {config.adamatch.dim} = {pairs:.3g}",
        f"time       ({pairs:.3g} + images {embed:.3g}) / ({hardware.fp32 / 1e12:g} T/s x {hardware.encode_share})",
    )
    held = 4 * studies * config.adamatch.dim * (patches + words)
    return Plan("metrics", work, held + 2e9, 1e6, "one worker scores all pairs", lines)


def _sides(config: RunConfig) -> tuple[Counted, Counted]:
    """AdaMatch's images and reports."""
    return counting.adamatch(AdaMatchSizes(config.image, config.text, config.adamatch), _words(config))


def _language_model(config: RunConfig) -> CountedLLM:
    return counting.language_model(config.llm, config.vqgan.codes)


def _patches(config: RunConfig) -> int:
    return config.image.grid(config.adamatch.stage) ** 2


def _words(config: RunConfig) -> int:
    return min(config.text.max_tokens, REPORT_TOKENS + 2)


def _picture_bytes(config: RunConfig) -> int:
    """Four maps of the VQ-GAN's full resolution, where it holds most."""
    return 4 * 4 * config.vqgan.ch * config.vqgan.image_size**2


_STAGES = _studies, _encoder, _adamatch, _place, _codebooks, _vqgan, _tokens, _llm, _generations, _metrics
PLANS: dict[str, Callable[[RunConfig, Counts, Hardware], Plan]] = {plan.__name__[1:]: plan for plan in _STAGES}
