"""One typed run configuration: presets, overrides from the command line, and its documentation.

Every section is a frozen dataclass; its defaults are the paper's. A preset or a YAML file changes some fields, the
command line changes others, and pydantic checks the sum. An unknown name is an error that names the nearest one.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import TypeAdapter, ValidationError

from adamatch_ray.model_config import (
    AdaMatchConfig,
    DiscriminatorConfig,
    GenerationSettings,
    InstructionConfig,
    LLMConfig,
    PVTConfig,
    TextEncoderConfig,
    VQGANConfig,
    VQLossConfig,
    option,
)
from adamatch_ray.training_config import DeepSpeedConfig, ImageTrain, LLMTrain, LoRAConfig, PlaceTrain, VQGANTrain

PRESETS = ("phantom", "phantom_long", "openi", "mimic_cxr", "released")
Table = Literal["retrieval", "reports", "images", "localization", "cycle", "reading", "memorisation"]
TABLES: tuple[Table, ...] = ("retrieval", "reports", "images", "localization", "cycle")


@dataclass(frozen=True)
class DataConfig:
    """Where studies come from and how they are stored (docs/method.md 7)."""

    source: Literal["phantom", "mimic_cxr", "openi", "manifest"] = option("mimic_cxr", "kind of data set")
    path: str = option("", "folder (mimic_cxr, openi) or table (manifest: CSV, JSON lines, parquet); local or s3://")
    reports: str = option("", "folder of the report files, when not beside the images (mimic_cxr)")
    projections: str = option("", "CSV that gives the view of each image (openi)")
    images: str = option("", "folder that image names in the table are relative to (manifest); default: the table's")
    image_column: str = option("image", "manifest column: image path; a/b: column a, a slash, column b")
    text_column: str = option("report", "manifest column: report text")
    id_column: str = option("", "manifest column: study id")
    subject_column: str = option("", "manifest column: subject id; default: the one in the path, else the study")
    split_column: str = option("", "manifest column: train, validate or test; default: drawn by subject")
    view_column: str = option("", "manifest column: view position")
    findings_column: str = option("", "manifest column: findings section, when the text is in two columns")
    impression_column: str = option("", "manifest column: impression section")
    views: Literal["frontal", "all"] = option(
        "frontal",
        "views that tables may name: PA and AP, or any (the paper counts laterals); of DICOM frontal ones",
    )
    canvas: int = option(256, "side of the stored square image, pixels")
    rows_per_shard: int = option(512, "source rows per parquet shard")
    labeler: Literal["none", "rules"] = option("rules", "labels of reports that come without any")
    seed: int = option(0, "seed of phantoms, of drawn splits and of the order of rows")
    phantoms: int = option(0, "number of phantoms to draw (phantom); 256 more each for validate and test")


@dataclass(frozen=True)
class EncoderStage:
    """Disease classification that pre-trains the image encoder (docs/method.md 1.1)."""

    train: ImageTrain = field(default_factory=ImageTrain)
    uncertain: Literal["mask", "positive", "negative"] = option("mask", "what an uncertain label (-1) counts as")
    blank: Literal["mask", "negative"] = option("negative", "what a label that is not mentioned counts as")
    init: str = option("", "published PVT/DPT state dict to start from (.pth)")


@dataclass(frozen=True)
class AdaMatchStage(AdaMatchConfig):
    """AdaMatch and its training (docs/method.md 1)."""

    init: str = option("encoder", "image weights: encoder (that stage), none, or a published PVT/DPT file (.pth)")
    train: ImageTrain = field(default_factory=ImageTrain)


@dataclass(frozen=True)
class PlaceStage:
    """The place head on a frozen AdaMatch (docs/method.md 1.6)."""

    head: Literal["none", "words"] = option(
        "none", "none: the patches alone tell where a word is (paper); words: a head learns it from the reports' words"
    )
    width: int = option(32, "channels of the head")
    dim: int = option(32, "dimension in which places and words are compared")
    negatives: int = option(4, "findings of other reports that each image is told it lacks")
    train: PlaceTrain = field(default_factory=PlaceTrain)


@dataclass(frozen=True)
class CodebooksConfig:
    """Keywords and keypatches of the train split (docs/method.md 2)."""

    backend: Literal["ner", "lexicon"] = option(
        "ner", "who finds entities in reports: a token classifier, or our lexicon"
    )
    ner: str = option("d4data/biomedical-ner-all", "hub name or folder (local or s3://) of the token classifier (ner)")
    min_score: float = option(0.7, "lowest confidence of an entity (ner)")
    per_group: int = option(100, "most frequent entities kept of each group")
    min_count: int = option(1, "fewest train reports an entity is found in")
    keypatches: int = option(20_000, "entries of the visual codebook: the most similar word-patch pairs")
    per_word: int = option(500, "most entries of the visual codebook for one word")
    batch_size: int = option(64, "studies embedded at once")


@dataclass(frozen=True)
class VQGANStage(VQGANConfig):
    """The VQ-GAN and its training (docs/method.md 3)."""

    init: str = option("", "published VQ-GAN to start from (.ckpt, .pt, .safetensors); with 0 epochs it is taken as is")
    perceptual: Literal["encoder", "lpips", "none"] = option(
        "encoder", "whose features judge a reconstruction: the encoder stage's, LPIPS where its weights are, nobody's"
    )
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    loss: VQLossConfig = field(default_factory=VQLossConfig)
    train: VQGANTrain = field(default_factory=VQGANTrain)

    @property
    def needs_encoder(self) -> bool:
        """Whether the losses look through the disease classifier of the encoder stage."""
        perceptual = self.perceptual == "encoder" and self.loss.perceptual_weight > 0
        return self.train.epochs > 0 and (perceptual or self.loss.clinical_weight > 0)


@dataclass(frozen=True)
class TokensConfig:
    """How images become tokens (docs/method.md 3)."""

    precision: Literal["fp32", "bf16"] = option("fp32", "bf16 is quicker on a GPU and changes some tokens")
    batch_size: int = option(0, "images that go through the model at once (0: 1 on a CPU, 64 on a GPU)")
    keypatches: bool = option(True, "also the tokens of the visual codebook's keypatches (needs codebooks/)")


@dataclass(frozen=True)
class LLMStage(LLMConfig):
    """The language model with image tokens and its tuning (docs/method.md 4)."""

    instructions: InstructionConfig = field(default_factory=InstructionConfig)
    train: LLMTrain = field(default_factory=LLMTrain)
    deepspeed: DeepSpeedConfig = field(default_factory=DeepSpeedConfig)
    lora: LoRAConfig = field(default_factory=LoRAConfig)


@dataclass(frozen=True)
class GenerateConfig(GenerationSettings):
    """Offline generation in both directions (docs/method.md 4)."""

    direction: Literal["both", "cxr_to_report", "report_to_cxr"] = option("both", "what each study is the start of")
    cycle: bool = option(True, "go on to the second half: the report's X-ray, the X-ray's report")
    split: Literal["train", "validate", "test"] = option("test", "split that is generated from")
    manifest: str = option("", "CSV/JSONL of images and reports of your own instead of a split")
    limit: int = option(0, "only the first so many studies (0: all)")
    shard: int = option(64, "studies in one output file, the unit of resumption")
    seed: int = option(0, "seed of every draw; a row's own seed is derived from it and the study id")


@dataclass(frozen=True)
class EvaluateConfig:
    """Scores on a split (docs/method.md 5)."""

    split: Literal["train", "validate", "test"] = option("test", "split that is scored")
    batch_size: int = option(64, "studies embedded at once")
    candidates: int = option(1000, "size of the older papers' retrieval protocol")
    tables: tuple[Table, ...] = option(TABLES, "what is scored; a table that lacks its data is left out and says why")
    probe: int = option(64, "table reading: first studies whose reports are written without keywords as well")
    predictions: str = option("", "CSV, JSONL or parquet of anyone's reports and/or images, scored instead of ours")
    id_column: str = option("study_id", "predictions column: study id (a column dicom_id is read where there is one)")
    report_column: str = option("report", "predictions column: the text of the report")
    image_column: str = option("image", "predictions column: image path, relative to the file")
    subset: bool = option(False, "predictions are of some studies: score those alone, instead of the rest as missing")
    only: str = option("", "file of study ids, one a line: of predictions, these alone are scored (Table 2)")
    phrases: str = option(
        "", "boxes of MS-CXR (.json, .csv), VinDr-CXR or NIH: where phrases are, instead of the data's"
    )
    shifted: bool = option(False, "place words by 16 shifted views of an image as well, where there is no place head")
    meteor: Literal["auto", "nltk", "java", "both", "none"] = option(
        "auto", "which METEOR; auto: whichever is installed"
    )
    judge: str = option("", "root whose encoder judges images (FID, findings), where this one's trained the VQ-GAN")
    extractor: Literal["encoder", "densenet", "inception"] = option("encoder", "whose features FID compares")
    extractor_weights: str = option("", "weights file of densenet (torchxrayvision) or inception")
    niqe: str = option("", "NIQE parameters, .npz of an earlier run or LIVE's .mat; default: fitted on train images")
    niqe_images: int = option(500, "real train images that NIQE is fitted on")
    tsne: int = option(250, "images a side in the t-SNE picture (0: no picture)")
    resamples: int = option(1000, "draws of the bootstrap over studies")
    seed: int = option(0, "seed of the bootstrap, of t-SNE and of the baselines")


@dataclass(frozen=True)
class GalleryConfig:
    """Which studies are drawn."""

    split: Literal["train", "validate", "test"] = option("test", "split that is drawn")
    studies: int = option(12, "its first so many studies")


@dataclass(frozen=True)
class PacsConfig:
    """The archive whose X-rays are read (docs/hospital.md)."""

    url: str = option("", "root of its DICOMweb services, such as https://pacs.example/dicom-web")
    day: str = option("", "studies of this day, YYYYMMDD, or of these days, YYYYMMDD-YYYYMMDD")
    batch: int = option(8, "X-rays that are read together")


@dataclass(frozen=True)
class ScaleConfig:
    """Workers and what each one holds."""

    workers: int = option(1, "training workers; times train.batch_size they are the batch of a step")
    llm_workers: int = option(0, "workers that tune the language model (0: as many as of the others)")
    gpu: bool = option(False, "one GPU per worker")
    cpus_per_worker: float = option(0.5, "CPUs reserved per training worker; leave some for data loading")
    loaders: int = option(1, "data-loading actors per training worker")
    max_failures: int = option(3, "restarts after a lost worker or node before a run gives up")
    stages_at_once: int = option(1, "stages that jobs/pipeline.py runs at once where none is made from the other")
    local_cpus: int = option(0, "CPUs of a Ray started for this job (0: all, at least 4); ignored on a cluster")

    def workers_of(self, stage: str) -> int:
        """Training workers of a stage."""
        return self.llm_workers or self.workers if stage == "llm" else self.workers


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides what a run computes."""

    data: DataConfig = field(default_factory=DataConfig)
    image: PVTConfig = field(default_factory=PVTConfig)
    text: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    encoder: EncoderStage = field(default_factory=EncoderStage)
    adamatch: AdaMatchStage = field(default_factory=AdaMatchStage)
    place: PlaceStage = field(default_factory=PlaceStage)
    codebooks: CodebooksConfig = field(default_factory=CodebooksConfig)
    vqgan: VQGANStage = field(default_factory=VQGANStage)
    tokens: TokensConfig = field(default_factory=TokensConfig)
    llm: LLMStage = field(default_factory=LLMStage)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    gallery: GalleryConfig = field(default_factory=GalleryConfig)
    pacs: PacsConfig = field(default_factory=PacsConfig)
    scale: ScaleConfig = field(default_factory=ScaleConfig)


def load_config(source: str, overrides: Mapping[str, str] | None = None) -> RunConfig:
    """The configuration of a preset name or YAML file, with `section.field` -> text overrides applied.

    Raises ValueError: unknown preset, missing file, unknown field (naming the nearest), value of a wrong type.
    """
    values = _read_yaml(source)
    _refuse_unknown(RunConfig, values, "")
    for key, text in (overrides or {}).items():
        _assign(values, key, text)
    try:
        return TypeAdapter(RunConfig).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        given = "" if isinstance(first["input"], Mapping) else f" (got {first['input']!r})"
        raise ValueError(f"{name}: {first['msg'].removeprefix('Value error, ')}{given}") from None


def to_yaml(config: RunConfig) -> str:
    """The resolved configuration as a YAML file that `--config` accepts."""
    return yaml.safe_dump(_plain(asdict(config)), sort_keys=False)


def describe(kind: type = RunConfig, prefix: str = "") -> Iterator[tuple[str, str, Any, str]]:
    """Each field of the configuration: dotted name, type, default, meaning."""
    hints = typing.get_type_hints(kind)
    for item in dataclasses.fields(kind):
        name, hint = prefix + item.name, hints[item.name]
        if dataclasses.is_dataclass(hint):
            yield from describe(typing.cast(type, hint), name + ".")
        else:
            yield name, _type_name(hint), item.default, item.metadata.get("help", "")


def meaning_of(section: str) -> str:
    """What a section of the configuration is about."""
    return " ".join((typing.get_type_hints(RunConfig)[section].__doc__ or "").split())


def section(config: RunConfig, name: str) -> dict[str, Any]:
    """One section as plain data (for fingerprints and manifests)."""
    return typing.cast(dict[str, Any], _plain(asdict(getattr(config, name))))


def _read_yaml(source: str) -> dict[str, Any]:
    if source in PRESETS:
        text = resources.files("adamatch_ray").joinpath("presets", f"{source}.yaml").read_text("utf-8")
    elif source.endswith((".yaml", ".yml")):
        if not Path(source).is_file():
            raise ValueError(f"--config {source}: no such file")
        text = Path(source).read_text("utf-8")
    else:
        raise ValueError(f"--config {source}: neither a preset ({', '.join(PRESETS)}) nor a .yaml file")
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"--config {source}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"--config {source}: expected sections such as 'data:' at the top level")
    if base := values.pop("base", None):
        return _merge(_read_yaml(base), values)
    return values


def _merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in change.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _assign(values: dict[str, Any], key: str, text: str) -> None:
    known = {name: (kind, default) for name, kind, default, _ in describe()}
    if key not in known:
        raise ValueError(f"unknown option --{key}{_nearest(key, known)}")
    *parents, leaf = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
    kind = known[key][0]
    if kind.startswith("tuple"):
        values[leaf] = [part for part in text.strip("[]() ").split(",") if part.strip()]
    else:  # a choice of numbers is compared as numbers
        values[leaf] = int(text) if kind.replace("|", "").isdigit() and text.isdigit() else text


def _refuse_unknown(kind: type, values: Mapping[str, Any], prefix: str) -> None:
    hints = typing.get_type_hints(kind)
    for key, value in values.items():
        if key not in hints:
            names = [name for name, *_ in describe()] if prefix else list(hints)
            raise ValueError(f"unknown field '{prefix}{key}'{_nearest(prefix + str(key), names)}")
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, Mapping):
                raise ValueError(f"{prefix}{key}: expected a section with fields, got {value!r}")
            _refuse_unknown(typing.cast(type, hints[key]), value, f"{prefix}{key}.")


def _nearest(key: str, known: Any) -> str:
    close = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else "; --help lists them all"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "|".join(str(choice) for choice in typing.get_args(hint))
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is not None:
        return str(hint).replace("typing.", "")
    return str(hint.__name__)
