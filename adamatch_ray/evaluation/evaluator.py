"""All tables of the paper for one root: reads stages and predictions, returns the files of `metrics/`."""

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from adamatch_ray.config import EvaluateConfig
from adamatch_ray.data.images import decode_png
from adamatch_ray.data.labeler import RuleLabeler
from adamatch_ray.data.loading import read_split
from adamatch_ray.data.phrase_boxes import read_phrase_boxes
from adamatch_ray.data.predictions import Encoded, Key, Predictions, read_generations, read_ids, read_predictions
from adamatch_ray.engines.cycle import CycleEngine
from adamatch_ray.engines.embedding import Embedder, SplitEmbeddings, embed_split
from adamatch_ray.engines.loader import load_embedder, load_place_head, load_tokenizer
from adamatch_ray.engines.localizing import localize_phrases, localize_split
from adamatch_ray.engines.matching import MatchingEngine
from adamatch_ray.evaluation import cycle, headline, images, localization, memorisation, reading, reports, split
from adamatch_ray.evaluation.image_meter import ImageMeter, niqe_fits
from adamatch_ray.evaluation.tables import csv_table
from adamatch_ray.metrics import retrieval
from adamatch_ray.metrics.niqe import NiqeParameters
from adamatch_ray.model_config import GenerationSettings
from adamatch_ray.pages import results as page
from adamatch_ray.pages.material import Material
from adamatch_ray.storage import Root


class NothingToScore(Exception):
    """Why a table is left out."""


def evaluate(root: str, options: EvaluateConfig, device: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Score the asked tables of a root: what metrics.json says, and the files of `metrics/` by name."""
    evaluator = Evaluator(Root(root), options, device)
    return evaluator.run(), evaluator.files


class Evaluator:
    """Scores the asked tables one after another; `files` holds what `metrics/` will hold, by name."""

    def __init__(self, root: Root, options: EvaluateConfig, device: str) -> None:
        self.root, self.options, self.device = root, options, device
        self.studies = root.stage("studies")
        self.split = split.read(self.studies, options.split)
        self.labeler = RuleLabeler()
        self.tables: dict[str, dict[str, Any]] = {}
        self.left_out: dict[str, str] = {}
        self.files: dict[str, bytes] = {}
        self.material = Material(self.split)

    def run(self) -> dict[str, Any]:
        """Score, fill `files`, and return the content of metrics.json."""
        scorers: dict[str, Callable[[], dict[str, Any]]] = {
            "retrieval": self._retrieval,
            "reports": self._reports,
            "images": self._images,
            "localization": self._localization,
            "cycle": self._cycle,
            "reading": self._reading,
            "memorisation": self._memorisation,
        }
        for name in (name for name in scorers if name in self.options.tables):
            print(f"metrics: {name}", file=sys.stderr)
            try:
                self.tables[name] = scorers[name]()
            except NothingToScore as reason:
                self.left_out[name] = str(reason)
                print(f"metrics: {name} left out: {reason}", file=sys.stderr)
                continue
            self.files[f"{name}.json"] = _json(self.tables[name])
        if not self.tables:
            raise ValueError("; ".join(f"{name}: {why}" for name, why in self.left_out.items()))
        return self._summarize()

    def _summarize(self) -> dict[str, Any]:
        rows = headline.headlines(self.tables, self.split.source)
        said = headline.differences(self.tables, self.split.source)
        title = f"Evaluation on the {self.split.name} split"
        summary = {
            "title": title,
            "split": self.split.name,
            "studies": len(self.split.studies),
            "data": self.split.label,
            "use": "Research use only. Not for diagnosis.",
            "predictions": self.predictions.source if "predictions" in self.__dict__ else None,
            "headlines": [row._asdict() for row in rows],
            "differences": said,
            "left_out": self.left_out,
            "tables": {name: {"file": f"{name}.json", **table} for name, table in self.tables.items()},
        }
        table = headline.markdown(rows, said, title, self.split.label, self.left_out)
        self.files["metrics.json"] = _json(summary)
        self.files["table.md"] = table.encode()
        names = sorted([*self.files, "report.html"])
        self.files["report.html"] = page.build(summary, self.material, names).encode()
        return summary

    def _retrieval(self) -> dict[str, Any]:
        found = self._embedded
        scores = retrieval.score_pairs(found.heads, found.word_IND, found.mask_IN, self.device)
        count = min(self.options.candidates, len(found.reports))
        return {
            "split": self.split.name,
            "studies": len(found.reports),
            "data": self.split.label,
            "full": retrieval.recall_full(scores, found.reports),
            "chance": retrieval.chance_full(found.reports),
            f"candidates_{count}": retrieval.recall_candidates(scores, found.reports, self.options.candidates),
            "released": retrieval.recall_released(scores),
        }

    def _reports(self) -> dict[str, Any]:
        asked, placed = self._place("reports", self.predictions.reports)
        result, rows = self._score_reports(asked, placed)
        result["baseline"] = reports.baseline(asked, self._train_reports, self.labeler, self.options.seed)
        result["not_scored"] = self._meteors[1]
        self.files["reports_by_study.csv"] = csv_table([row._asdict() for row in rows])
        self.material.reports, self.material.report_rows = placed, rows
        return result

    def _score_reports(
        self, asked: split.Split, placed: split.Placed[str]
    ) -> tuple[dict[str, Any], list[reports.StudyScore]]:
        options = self.options
        return reports.score(asked, placed, self.labeler, self._meteors[0], options.resamples, options.seed)

    def _images(self) -> dict[str, Any]:
        asked, placed = self._place("images", self.predictions.images)
        others = dict(self._reconstruction)
        if self.predictions.cycle_images is not None:
            others["second_image"] = asked.place(self.predictions.cycle_images)
        meter = self._meter()
        table = images.score(
            asked,
            split.read(self.studies, "validate"),
            placed,
            meter,
            meter.name,
            meter.judge,
            self.labeler,
            others=others,
            tsne_images=self.options.tsne,
            resamples=self.options.resamples,
            seed=self.options.seed,
        )
        table.result["judge"] = {"name": meter.judge, "independent": self._independent}
        if meter.parameters and table.result["niqe"]:
            table.result["niqe"]["pristine"] = meter.parameters.source
            self.files["niqe.npz"] = _saved(meter.parameters)
        for name, statistics in table.statistics.items():
            self.files[f"features_{name}.npz"] = _saved(statistics)
        if table.points:
            self.files["tsne.json"] = _json(table.points)
        self.files["images_by_study.csv"] = csv_table([row._asdict() for row in table.rows])
        self.material.images, self.material.image_rows, self.material.points = placed, table.rows, table.points
        self.material.marks = {kind: dict(zip(asked.ids, own, strict=True)) for kind, own in table.marks.items()}
        return table.result

    def _localization(self) -> dict[str, Any]:
        phrases, head = self.options.phrases, load_place_head(self.root, self.device)
        engine = MatchingEngine(self._embedder, place=head, shifted=self.options.shifted)
        if phrases:
            located = localize_phrases(engine, self.studies, self.split.name, read_phrase_boxes(phrases))
        else:
            located = localize_split(engine, self.studies, self.split.name)
        if not located.rows:
            whose = f"is annotated in {phrases}" if phrases else "has boxes that say where its findings are"
            raise NothingToScore(f"no study of split {self.split.name} {whose}")
        self.files["localization_by_phrase.csv"] = csv_table(localization.phrase_rows(located.rows))
        return localization.score(located, self.options.resamples, self.options.seed)

    def _cycle(self) -> dict[str, Any]:
        made = self.predictions
        if made.images is None and made.cycle_reports is None and made.cycle_images is None:
            raise NothingToScore(f"{made.source} has neither generated images nor second reports")
        result: dict[str, Any] = {"chance": retrieval.chance_full(self._embedded.reports)}
        if made.cycle_reports is not None:
            asked, placed = self._place("second reports", made.cycle_reports)
            result["second_report"] = self._score_reports(asked, placed)[0]
            self.material.second_reports = placed
            if made.reports is not None:
                result["real_xray"] = self._score_reports(asked, asked.place(made.reports))[0]
        for name, column in (("generated_image", made.images), ("second_image", made.cycle_images)):
            if column is not None:
                asked, placed = self._place(name, column)
                result[name] = self._score_pictures(asked, placed, name)
                if name == "second_image":
                    self.material.second_images = placed
        asked = self._asked
        real: split.Placed[Encoded] = split.Placed({study.id: study.image for study in asked.studies}, (), ())
        for name, pictures in {**self._reconstruction, "real": real}.items():
            result[name] = self._score_pictures(asked, pictures, name)
        return result

    def _score_pictures(self, asked: split.Split, placed: split.Placed[Encoded], name: str) -> dict[str, Any]:
        """What AdaMatch finds from pictures; and what the classifier sees in them, where images were scored."""
        embedded = self._embedded.beginning_with([self.split.ids.index(id) for id in asked.ids])
        result = cycle.score(asked, placed, self._embedder, embedded, self._canvas)
        kind, judged = name.replace("generated_image", "generated"), self.tables.get("images", {})
        if kind in judged.get("findings", {}):
            side = judged["sides"][kind]
            seen = {"f1": judged["findings"][kind]["micro"]["f1"], "side": side and side["share"]}
            result["seen"] = seen
        return result

    def _reading(self) -> dict[str, Any]:
        made = self.predictions
        if self.options.predictions or made.reports is None:
            raise NothingToScore(f"{made.source} has no reports of this root's language model")
        asked, placed = self._place("reports", made.reports)
        options = self.root.stage("generations").require().config["generate"]
        names = options.keys() & {item.name for item in fields(GenerationSettings)}
        settings = GenerationSettings(**{name: options[name] for name in names})
        engine, first = CycleEngine.load(self.root, self.device, settings), asked.first(self.options.probe)
        return reading.score(engine, self.studies, first, placed.values, options["seed"])

    def _memorisation(self) -> dict[str, Any]:
        made, asked = self.predictions, self._asked
        if self.options.predictions:
            raise NothingToScore(f"{made.source} was not made by this root's models, whose training studies are known")
        pictures = {"generated_image": made.images, "second_image": made.cycle_images}
        texts = {"generated_report": made.reports, "second_report": made.cycle_reports}
        placed = {name: asked.place(column) for name, column in pictures.items() if column is not None}
        validate, tokenizer = split.read(self.studies, "validate"), load_tokenizer(self.root, self.device)
        found, rows = memorisation.score_images(
            self.studies, self.split, validate, placed, self._embedder, tokenizer.through, self._canvas
        )
        self.files["memorisation_by_study.csv"] = csv_table([row._asdict() for row in rows])
        self.material.copies = [row for row in rows if row.copy]
        said = {name: list(asked.place(column).values.values()) for name, column in texts.items() if column is not None}
        return {"images": found, "reports": memorisation.score_reports(said, self._train_reports)}

    def _place(self, what: str, column: dict[Key, Any] | None) -> tuple[split.Split, split.Placed[Any]]:
        """The studies that predictions were asked for, and the predictions by study."""
        if column is None:
            raise NothingToScore(f"{self.predictions.source} has no {what}")
        asked = self._asked
        if self.options.subset:
            asked = asked.having(column)
        return asked, asked.place(column)

    def _meter(self) -> ImageMeter:
        options, pristine = self.options, None
        if options.niqe:
            pristine = NiqeParameters.load(options.niqe)
        elif niqe_fits(self._canvas):
            pristine = images.fit_niqe(self.studies, options.niqe_images, self.split.label)
        named = options.extractor, options.extractor_weights
        return ImageMeter(self.root, options.judge, self._canvas, self.device, *named, pristine)

    @cached_property
    def predictions(self) -> Predictions:
        """Anyone's predictions where a file is named, our generations otherwise."""
        options = self.options
        if options.predictions:
            return read_predictions(options.predictions, options.id_column, options.report_column, options.image_column)
        made = read_generations(self.root.stage("generations"))
        if made.split not in ("", options.split):
            raise ValueError(f"{made.source} is of split {made.split}; say --evaluate.split {made.split}, or generate")
        return made

    @property
    def _asked(self) -> split.Split:
        """The studies that predictions were asked for, and of these those that are to be scored."""
        asked, only = self.split.first(self.predictions.limit), self.options.only
        return asked.named(read_ids(only), only) if only else asked

    @cached_property
    def _reconstruction(self) -> dict[str, split.Placed[Encoded]]:
        """What our VQ-GAN makes of the real X-rays; nothing for anyone else's predictions."""
        if self.options.predictions:
            return {}
        return {"reconstruction": images.reconstruct(load_tokenizer(self.root, self.device), self._asked)}

    @property
    def _independent(self) -> bool:
        """Whether no loss of the VQ-GAN looked through the classifier that judges, whatever root it lies in."""
        trained, judge = self.root.stage("vqgan").manifest(), Root(self.options.judge or self.root.uri).stage("encoder")
        through = trained.parents.get("encoder") if trained and not self.options.predictions else None
        return through != judge.require().fingerprint

    @cached_property
    def _train_reports(self) -> list[str]:
        return [text for table in read_split(self.studies, "train", ["report"]) for text in table["report"].to_pylist()]

    @cached_property
    def _meteors(self) -> Any:
        return reports.available_meteors(self.options.meteor)

    @cached_property
    def _canvas(self) -> int:
        return int(decode_png(self.split.studies[0].image).shape[0])

    @cached_property
    def _embedder(self) -> Embedder:
        return load_embedder(self.root, self.device)

    @cached_property
    def _embedded(self) -> SplitEmbeddings:
        model, tokenizer = self._embedder.model, self._embedder.tokenizer
        with torch.inference_mode():
            return embed_split(model, tokenizer, self.studies, self.split.name, self.options.batch_size)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def _saved(value: Any) -> bytes:
    """What `value.save(path)` writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "value.npz"
        value.save(path)
        return path.read_bytes()
