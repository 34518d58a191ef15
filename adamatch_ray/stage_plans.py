"""The sums of a plan, stage by stage (see `planning` for what goes in and how it is shown)."""

from collections.abc import Callable
from dataclasses import replace

from adamatch_ray import arithmetic
from adamatch_ray.config import RunConfig, TrainConfig
from adamatch_ray.planning import Counts, Hardware, Plan, clock, giga, millions, size

REPORT_TOKENS = 100
"""Assumed mean length of a report in word pieces."""
PROMPT_TOKENS = 100
"""Assumed preamble, instruction, keys and keywords of a prompt in tokens."""
DECODE_RATE = 69.0
"""Full-size JPEGs decoded, shrunk and stored by one core in a second; measured (14.5 ms each)."""
PHANTOM_RATE = 45.0
"""Phantoms drawn and stored by one core in a second; measured."""
STORED_BYTES = 0.55
"""Bytes of a stored canvas for each of its pixels (PNG), with its share of the other columns."""
NETWORK = 1e9
"""Bytes a second that a node is assumed to read from or write to storage."""


def plan_stage(stage: str, config: RunConfig, counts: Counts, hardware: Hardware) -> Plan:
    """The plan of one stage. Raises ValueError when a published model's sizes are not known here."""
    return PLANS[stage](config, counts, hardware)


def _studies(config: RunConfig, counts: Counts, hardware: Hardware) -> Plan:
    cores = max(1.0, config.scale.workers * config.scale.cpus_per_worker) if config.scale.gpu else 2
    phantom = config.data.source == "phantom"
    rate = PHANTOM_RATE if phantom else DECODE_RATE
    done = counts.all
    work = done / (cores * rate)
    read = 0 if phantom else done * 1.46e6 / NETWORK
    stored = done * config.data.canvas**2 * STORED_BYTES
    lines = [
        f"studies    train {counts.train:,} + validate {counts.validate:,} + test {counts.test:,} = {done:,} "
        f"({counts.source})",
        f"cores      {done:,} / ({cores:g} cores x {rate:g} a second) = {clock(work)}",
        f"reading    {done:,} x 1.46 MB / {size(NETWORK)}/s = {clock(read)}" if read else "reading    nothing is read",
        f"storage    {done:,} x {config.data.canvas}^2 pixels x {STORED_BYTES} B = {size(stored)}",
    ]
    limit = "reading from storage" if read > work else "decoding on the cores" if read else "drawing on the cores"
    return Plan("studies", max(work, read), 2e9, stored, limit, tuple(lines))


def _encoder(config: RunConfig, counts: Counts, hardware: Hardware) -> Plan:
    image = _image(config)
    stages = arithmetic.pvt_stages(image)
    parameters = arithmetic.pvt_parameters(image)
    forward = sum(stage.operations for stage in stages)
    lines = [f"parameters {millions(parameters)}", f"operations {giga(forward)} forward an image"]
    kept = sum(stage.activation_bytes for stage in stages)
    return _training("encoder", config, config.encoder.train, counts, hardware, parameters, forward, kept, lines)


def _adamatch(config: RunConfig, counts: Counts, hardware: Hardware) -> Plan:
    image, text, options = _image(config), arithmetic.text_sizes(config.text), config.adamatch
    if text is None:
        raise ValueError(f"the sizes of {config.text.name_or_path} are not known here")
    stages = arithmetic.pvt_stages(image)[: options.stage]
    patches, words = stages[-1].patches, min(config.text.max_tokens, REPORT_TOKENS + 2)
    together = config.adamatch.train.batch_size * (config.scale.workers if options.negatives == "global" else 1)
    image_ops = sum(stage.operations for stage in stages)
    text_ops = arithmetic.transformer_operations(text, words)
    match_ops = 2 * together * patches * words * options.dim
    forward = image_ops + text_ops + match_ops
    parameters = arithmetic.pvt_parameters(image) + arithmetic.bert_parameters(text)
    kept = sum(stage.activation_bytes for stage in stages) + text.layers * words * text.width * 34
    lines = [
        f"parameters image {millions(arithmetic.pvt_parameters(image))} + text "
        f"{millions(arithmetic.bert_parameters(text))} = {millions(parameters)}",
        f"operations image {giga(image_ops)} + text {giga(text_ops)} ({words} word pieces) + matching "
        f"2 x {together} reports x {patches} patches x {words} words x {options.dim} = {giga(match_ops)}; "
        f"forward {giga(forward)} a study",
    ]
    return _training("adamatch", config, options.train, counts, hardware, parameters, forward, kept, lines)


def _training(
    stage: str,
    config: RunConfig,
    train: TrainConfig,
    counts: Counts,
    hardware: Hardware,
    parameters: int,
    forward: int,
    kept: int,
    lines: list[str],
) -> Plan:
    """Data-parallel training: every worker holds all weights; forward once, backward twice the operations."""
    workers, batch = config.scale.workers, train.batch_size
    peak = hardware.fp32 if train.precision == "fp32" else hardware.bf16
    per_epoch = counts.train // (batch * workers)
    steps = min(train.max_steps or per_epoch * train.epochs, per_epoch * train.epochs)
    step_s = 3 * forward * batch / (peak * hardware.train_share)
    work = steps * step_s
    loading = steps * batch / (config.scale.loaders * 1_217 * (256 / config.data.canvas) ** 2)
    memory = 16 * parameters + kept * batch + 1.5e9
    stored = 2 * 12 * parameters + 4 * parameters
    lines = [
        *lines,
        f"steps      {counts.train:,} // ({batch} x {workers} workers) = {per_epoch:,} an epoch, {steps:,} in all",
        f"a step     3 x {giga(forward)} x {batch} / ({peak / 1e12:g} T/s x {hardware.train_share}) = {step_s:.3g} s",
        f"loading    {steps:,} x {batch} / ({config.scale.loaders} loaders x 1,217 a second at 256 pixels) "
        f"= {clock(loading)}",
        f"memory     16 B x {millions(parameters)} + {size(kept)} kept x {batch} + 1.5 GB = {size(memory)}",
        f"storage    2 checkpoints x 12 B + model 4 B, x {millions(parameters)} = {size(stored)}",
    ]
    limit = "loading" if loading > work else f"arithmetic on the {hardware.name}"
    return Plan(stage, max(work, loading), memory, stored, limit, tuple(lines))


def _codebooks(config: RunConfig, counts: Counts, hardware: Hardware) -> Plan:
    text = arithmetic.text_sizes(config.text)
    if text is None:
        raise ValueError(f"the sizes of {config.text.name_or_path} are not known here")
    finder = arithmetic.PUBLISHED.get(config.codebooks.ner) if config.codebooks.backend == "ner" else None
    words = min(config.text.max_tokens, REPORT_TOKENS + 2)
    ner = arithmetic.transformer_operations(finder, words) if finder else 0
    image = sum(stage.operations for stage in arithmetic.pvt_stages(_image(config))[: config.adamatch.stage])
    each = ner + image + arithmetic.transformer_operations(text, words)
    peak = hardware.fp32 * hardware.encode_share
    work = counts.train * each / (config.scale.workers * peak)
    stored = config.codebooks.keypatches * (4 * config.adamatch.dim + 200)
    lines = (
        f"operations entities {giga(ner)} + image {giga(image)} + report = {giga(each)} a study",
        f"time       {counts.train:,} x {giga(each)} / ({config.scale.workers} workers x {peak / 1e12:.3g} T/s fp32)",
        f"storage    {config.codebooks.keypatches:,} keypatches x (4 B x {config.adamatch.dim} + 200 B)",
    )
    return Plan("codebooks", work, 4e9, stored, f"arithmetic on the {hardware.name}", lines)


def _vqgan(config: RunConfig, counts: Counts, hardware: Hardware) -> Plan:
    parameters = arithmetic.vqgan_parameters(config.vqgan)
    encode, decode = arithmetic.encode_operations(config.vqgan), arithmetic.decode_operations(config.vqgan)
    lines = [
        f"parameters {millions(parameters)}",
        f"operations encode {giga(encode)} + decode {giga(decode)} an image; the judges' part is left out",
    ]
    if config.vqgan.train.epochs == 0:
        return Plan("vqgan", 0.0, 4 * parameters, 4 * parameters, "nothing is trained", tuple(lines))
    # Every residual block keeps about six maps of its width; full resolution alone is most of it.
    kept = 2 * 6 * (4 * config.vqgan.num_res_blocks + 2) * config.vqgan.ch * config.vqgan.image_size**2
    return _training("vqgan", config, config.vqgan.train, counts, hardware, parameters, encode + decode, kept, lines)


def _tokens(config: RunConfig, counts: Counts, hardware: Hardware) -> Plan:
    encode = arithmetic.encode_operations(config.vqgan)
    peak = hardware.fp32 if config.tokens.precision == "fp32" else hardware.bf16
    rate = peak * hardware.encode_share / encode
    work = counts.all / (config.scale.workers * rate)
    batch = config.tokens.batch_size or (64 if config.scale.gpu else 1)
    parameters, pixels = arithmetic.vqgan_parameters(config.vqgan), config.vqgan.image_size**2
    memory = 4 * parameters + batch * 4 * 4 * config.vqgan.ch * pixels
    stored = counts.all * (2 * config.vqgan.tokens + 100)
    lines = (
        f"operations {giga(encode)} an image",
        f"rate       {peak / 1e12:g} T/s {config.tokens.precision} x {hardware.encode_share} / {giga(encode)} "
        f"= {rate:.3g} images/s a worker",
        f"time       {counts.all:,} / ({config.scale.workers} workers x {rate:.3g})",
        f"memory     4 B x {millions(parameters)} + {batch} images x 4 maps x "
        f"{config.vqgan.ch} x {config.vqgan.image_size}^2 x 4 B",
        f"storage    {counts.all:,} x (2 B x {config.vqgan.tokens} tokens + 100 B)",
    )
    return Plan("tokens", work, memory, stored, f"arithmetic on the {hardware.name}", lines)


def _llm(config: RunConfig, counts: Counts, hardware: Hardware) -> Plan:
    model, train, spread = _llm_sizes(config), config.llm.train, config.llm.deepspeed
    parameters, batch = arithmetic.neox_parameters(model), train.batch_size
    workers = config.scale.workers_of("llm")
    length = min(model.positions, PROMPT_TOKENS + config.vqgan.tokens + REPORT_TOKENS)
    rank = config.llm.lora.rank  # adapters on the four matrices of a layer; both ends are tuned for their new rows
    trained = 16 * rank * model.width * model.layers + 2 * model.vocab * model.width if rank else parameters
    share = zero_bytes(trained, workers, spread.stage, spread.offload_optimizer == "cpu")
    share += 2 * (parameters - trained) / (workers if spread.stage == 3 else 1)
    edge = 2 * length * model.width
    inside = 34 * length * model.width
    kept = batch * (edge * model.layers + inside if config.llm.gradient_checkpointing else inside * model.layers)
    logits = batch * config.vqgan.tokens * model.vocab * 6
    memory = share + kept + logits + 1.5e9
    together = batch * workers * spread.accumulate
    per_epoch = 2 * counts.train // together
    steps = min(train.max_steps or per_epoch * train.epochs, per_epoch * train.epochs)
    step_s = 6 * parameters * length * batch * spread.accumulate / (hardware.bf16 * hardware.llm_share)
    stored = 2 * (2 * parameters + 12 * trained) + 2 * parameters
    lines = (
        f"parameters {millions(parameters)}, {millions(trained)} of them tuned",
        f"record     {PROMPT_TOKENS} prompt + {config.vqgan.tokens} image + {REPORT_TOKENS} report = {length} tokens",
        f"steps      2 x {counts.train:,} // {together} records = {per_epoch:,} an epoch, {steps:,} in all",
        f"a step     6 x {millions(parameters)} x {length} x {batch * spread.accumulate} / "
        f"({hardware.bf16 / 1e12:g} T/s x {hardware.llm_share}) = {step_s:.3g} s",
        f"memory     ZeRO-{spread.stage} over {workers}: {size(share)} + activations {size(kept)} + logits "
        f"{batch} x {config.vqgan.tokens} x {model.vocab:,} x 6 B = {size(logits)} + 1.5 GB = {size(memory)}",
        f"storage    2 checkpoints x (2 B x {millions(parameters)} + 12 B x {millions(trained)}) + model 2 B x "
        f"{millions(parameters)} = {size(stored)}",
    )
    return Plan("llm", steps * step_s, memory, stored, f"arithmetic on the {hardware.name}", lines)


def zero_bytes(parameters: int, workers: int, stage: int, offloaded: bool = False) -> float:
    """Bytes of weights, gradients and optimiser on one of `workers` GPUs: 2 + 2 + 12 a parameter, split by ZeRO stage.

    Stage 1 splits the optimiser's 12 (fp32 weights and two moments), 2 the gradients too, 3 the weights too.
    """
    weights, gradients, optimizer = 2.0, 2.0, 0.0 if offloaded else 12.0
    return parameters * (
        weights / (workers if stage >= 3 else 1)
        + gradients / (workers if stage >= 2 else 1)
        + optimizer / (workers if stage >= 1 else 1)
    )


def _generations(config: RunConfig, counts: Counts, hardware: Hardware) -> Plan:
    model, options = _llm_sizes(config), config.generate
    studies = {"train": counts.train, "validate": counts.validate, "test": counts.test}[options.split]
    studies = min(studies, options.limit or studies)
    ways = 2 if options.direction == "both" else 1
    steps = config.vqgan.tokens + REPORT_TOKENS if options.cycle else max(config.vqgan.tokens, REPORT_TOKENS)
    weights = 2 * arithmetic.neox_parameters(model)
    context = PROMPT_TOKENS + config.vqgan.tokens + REPORT_TOKENS
    cache = 2 * 2 * model.layers * model.width * context * options.batch_size
    step_s = (weights + cache) / (hardware.bandwidth * hardware.read_share)
    answers = ways * studies
    work = answers / (config.scale.workers * options.batch_size) * steps * step_s
    stored = answers * (2 * config.vqgan.image_size**2 * STORED_BYTES + 4_000)
    lines = (
        f"answers    {ways} direction(s) x {studies:,} studies = {answers:,}, {steps} tokens each",
        f"a step     (weights {size(weights)} + cache {options.batch_size} x {context} tokens x "
        f"{size(4 * model.layers * model.width)} = {size(cache)}) / ({size(hardware.bandwidth)}/s x "
        f"{hardware.read_share}) = {step_s * 1e3:.3g} ms",
        f"time       {answers:,} / ({config.scale.workers} workers x {options.batch_size}) x {steps} x "
        f"{step_s * 1e3:.3g} ms",
    )
    return Plan("generations", work, weights + cache + 3e9, stored, "reading weights and cache from memory", lines)


def _metrics(config: RunConfig, counts: Counts, hardware: Hardware) -> Plan:
    studies = {"train": counts.train, "validate": counts.validate, "test": counts.test}[config.evaluate.split]
    stages = arithmetic.pvt_stages(_image(config))[: config.adamatch.stage]
    words = min(config.text.max_tokens, REPORT_TOKENS + 2)
    pairs = 2 * studies**2 * stages[-1].patches * words * config.adamatch.dim
    embed = studies * sum(stage.operations for stage in stages)
    work = (pairs + embed) / (hardware.fp32 * hardware.encode_share)
    lines = (
        f"pairs      2 x {studies:,}^2 x {stages[-1].patches} patches x {words} words x {config.adamatch.dim} "
        f"= {pairs:.3g}",
        f"time       ({pairs:.3g} + images {embed:.3g}) / ({hardware.fp32 / 1e12:g} T/s x {hardware.encode_share})",
    )
    held = 4 * studies * config.adamatch.dim * (stages[-1].patches + words)
    return Plan("metrics", work, held + 2e9, 1e6, "one worker scores all pairs", lines)


def _image(config: RunConfig) -> arithmetic.PVTConfig:
    return config.image if config.adamatch.adapatch else replace(config.image, adapatch_stages=())


def _llm_sizes(config: RunConfig) -> arithmetic.Transformer:
    model = arithmetic.llm_sizes(config.llm, config.vqgan.codes)
    if model is None:
        raise ValueError(f"the sizes of {config.llm.name_or_path} are not known here")
    return model


PLANS: dict[str, Callable[[RunConfig, Counts, Hardware], Plan]] = {
    "studies": _studies,
    "encoder": _encoder,
    "adamatch": _adamatch,
    "codebooks": _codebooks,
    "vqgan": _vqgan,
    "tokens": _tokens,
    "llm": _llm,
    "generations": _generations,
    "metrics": _metrics,
}
