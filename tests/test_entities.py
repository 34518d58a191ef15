"""Finders of entities: whole words, four groups, reading order; nothing of a long report is lost."""

import re
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from transformers import BertTokenizer, DistilBertConfig, DistilBertForTokenClassification

from adamatch_ray.codebooks import GROUPS, rank_entities
from adamatch_ray.data.phantom_report import FINDING_WORDS
from adamatch_ray.data.reports import compose_report
from adamatch_ray.engines.entities import (
    STOP_WORDS,
    LexiconEntities,
    NerEntities,
    denoting_words,
    finder_identity,
    open_finder,
    read_lexicon,
)

STRUCTURE, DESCRIPTION, DISEASE, SIGN = GROUPS
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "openi" / "ecgen-radiology"

LABELS = ["O", *(f"{part}-{group}" for group in GROUPS for part in "BI"), "B-Sign_symptom ", "B-Sign", "I-Lab_value"]
WORDS = {
    "heart": "B-Biological_structure",
    "lung": "B-Biological_structure",
    "left": "B-Detailed_description",
    "pleural": "B-Disease_disorder",
    "effusion": "I-Disease_disorder",
    "opa": "B-Sign_symptom",
    "the": "B-Biological_structure",
    "xxxx": "B-Sign_symptom",
    "7": "B-Detailed_description",
    "cough": "B-Sign_symptom ",
    "fever": "B-Sign",
    "normal": "I-Lab_value",
}


@pytest.fixture(scope="module")
def ner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token classifier that labels each piece by itself as WORDS says, saved as a folder."""
    folder = tmp_path_factory.mktemp("ner")
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *WORDS,
        "is",
        "no",
        "of",
        "##city",
        "##ly",
        ".",
        ",",
        "-",
        "sided",
    ]
    BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, do_lower_case=True).save_pretrained(str(folder))
    config = DistilBertConfig(
        vocab_size=len(pieces),
        dim=64,
        n_heads=1,
        n_layers=1,
        hidden_dim=4,
        id2label=dict(enumerate(LABELS)),
        label2id={label: i for i, label in enumerate(LABELS)},
    )
    model = DistilBertForTokenClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for name, parameter in model.named_parameters():
            if "LayerNorm" in name or "layer_norm" in name:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
        # Nothing but the piece reaches the classifier: attention and positions are zero.
        torch.nn.init.orthogonal_(model.distilbert.embeddings.word_embeddings.weight)
        features = model.distilbert(torch.arange(len(pieces))[None]).last_hidden_state[0]
        for i, piece in enumerate(pieces):
            model.classifier.weight[LABELS.index(WORDS.get(piece, "O"))] += features[i] / 8
    model.save_pretrained(str(folder))
    return folder


def texts(finder: LexiconEntities | NerEntities, report: str) -> list[str]:
    return [found.text for found in finder.find([report])[0]]


def test_lexicon_finds_the_entities_of_a_sentence_in_reading_order() -> None:
    found = LexiconEntities().find(["There is a small left pleural effusion. The heart is enlarged; sternotomy wires."])
    assert found == [
        [
            ("small", DESCRIPTION),
            ("left", DESCRIPTION),
            ("pleural effusion", DISEASE),
            ("cardiomegaly", DISEASE),
            ("sternotomy wires", SIGN),
        ]
    ]


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ("Right-sided effusions", ["right", "pleural effusion"]),
        ("effusion, then an Effusion", ["pleural effusion"]),
        ("masses and opacities in both apices", ["mass", "opacity", "lung apex"]),
        ("left lower lobe opacity", ["left lower lobe", "opacity"]),
        ("left. Lower lobe", ["left", "lower lobe"]),
        ("the massive heartland is hilarious", ["massive"]),
        ("air space disease; air, space", ["airspace disease", "air"]),
        ("low lung volumes", ["low lung volumes"]),
        ("", []),
        ("XXXX 3.4 cm of the, and no", []),
    ],
)
def test_lexicon_prefers_long_phrases_and_whole_words(report: str, expected: list[str]) -> None:
    assert texts(LexiconEntities(), report) == expected


def test_lexicon_reads_like_radiology() -> None:
    lexicon = read_lexicon()
    assert set(lexicon) == set(GROUPS) and min(len(terms) for terms in lexicon.values()) > 75
    terms = [term for group in lexicon.values() for term in group]
    assert len(terms) == len(set(terms)), "a term has one group"
    finder = LexiconEntities(lexicon)
    for term in terms:
        assert re.fullmatch(r"[a-z]+( [a-z]+)*", term) and not {term} & STOP_WORDS
        assert texts(finder, f"Seen: {term}.") == [term]


def test_lexicon_knows_the_findings_of_phantoms() -> None:
    """Their words are found, and are words that denote what is found."""
    lexicon = read_lexicon()
    finder = LexiconEntities(lexicon)
    for word in {word for words in FINDING_WORDS.values() for word in words}:
        found = texts(finder, f"the heart is {word}" if word == "enlarged" else f"there is a {word}")
        assert len(found) == 1 and word in denoting_words(found, lexicon), word


def test_lexicon_of_your_own_is_checked() -> None:
    assert texts(LexiconEntities({SIGN: {"haze": ["grey veil"]}}), "a grey veil, hazes") == ["haze"]
    with pytest.raises(ValueError, match="'veil' stands twice"):
        LexiconEntities({SIGN: {"haze": ["veil"]}, DISEASE: {"veil": []}})
    with pytest.raises(ValueError, match="unknown group 'Signs'"):
        LexiconEntities({"Signs": {}})


def test_classifier_gives_whole_words_of_the_four_groups(ner: Path) -> None:
    finder = NerEntities(str(ner))
    assert finder.find(["Heart. Left pleural effusion, no opacity.", "heart of heart is opa"]) == [
        [("heart", STRUCTURE), ("left", DESCRIPTION), ("pleural effusion", DISEASE), ("opacity", SIGN)],
        [("heart", STRUCTURE), ("opa", SIGN)],
    ]
    assert texts(finder, "left-sided heart") == ["left-sided", "heart"], "a compound is one word"


@pytest.mark.parametrize("report", ["the", "7", "xxxx", "the XXXX 7", "cough. fever. normal", "", " . "])
def test_classifier_gives_no_filler_numbers_hidden_names_or_other_labels(ner: Path, report: str) -> None:
    assert texts(NerEntities(str(ner)), report) == []


def test_classifier_drops_filler_at_the_ends_of_an_entity(ner: Path) -> None:
    assert texts(NerEntities(str(ner)), "the heart") == ["heart"]


def test_unsure_entities_are_left_out(ner: Path) -> None:
    assert texts(NerEntities(str(ner), min_score=0.5), "heart") == ["heart"]
    assert texts(NerEntities(str(ner), min_score=1.0), "heart") == []


@pytest.mark.parametrize("filler", ["is . ", "is ", "opacity, ", "- "])
def test_nothing_of_a_long_report_is_lost(ner: Path, filler: str) -> None:
    """Chunks end between words, wherever the limit of positions falls."""
    finder = NerEntities(str(ner))
    for count in (250, 505, 508, 509, 510, 511, 1200):
        found = texts(finder, filler * count + "effusion opacity of lung " + filler * count + "pleural effusion left")
        assert [text for text in found if text != "opacity"] == ["effusion", "lung", "pleural effusion", "left"]
        assert "opacity" in found


def test_answers_do_not_depend_on_the_batch(ner: Path) -> None:
    reports = ["heart", "left lung " * 400, "", "pleural effusion", "opacity is of the lung."]
    finder = NerEntities(str(ner), batch_size=2)
    assert finder.find(reports) == [finder.find([report])[0] for report in reports]
    assert finder.find([]) == []


def test_missing_or_useless_classifier_is_a_clear_error(ner: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"codebooks\.ner .*no token classifier there.*backend lexicon"):
        open_finder("ner", str(tmp_path / "nothing"), 0.7)
    config = DistilBertConfig(vocab_size=30, dim=8, n_heads=1, n_layers=1, hidden_dim=4)
    DistilBertForTokenClassification(config).save_pretrained(str(tmp_path))
    BertTokenizer(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}).save_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match="its labels hold none of Biological_structure"):
        open_finder("ner", str(tmp_path), 0.7)


def test_identity_tells_finders_apart() -> None:
    kinds = [("lexicon", "", 0.7), ("ner", "a", 0.7), ("ner", "b", 0.7), ("ner", "a", 0.8)]
    assert len({str(finder_identity(*kind)) for kind in kinds}) == 4


@pytest.mark.skipif(not SHARED.is_dir(), reason="no real reports at ../shared/data")
def test_real_reports_read_like_radiology() -> None:
    reports = []
    for path in sorted(SHARED.glob("*.xml"))[::4]:
        parts = {e.get("Label"): e.text or "" for e in ElementTree.parse(path).getroot().iter("AbstractText")}
        reports.append(compose_report(parts.get("FINDINGS", ""), parts.get("IMPRESSION", "")))
    found = LexiconEntities().find(reports)
    top = rank_entities(Counter(entity for entities in found for entity in entities), per_group=20)
    names = {entity.text for entity in top}
    assert len(top) == 80 and not names & STOP_WORDS
    assert {
        "lung",
        "heart",
        "mediastinal contour",
        "clear",
        "bilateral",
        "pleural effusion",
        "pneumothorax",
        "opacity",
    } <= names
    assert sum(not entities for entities in found) < 0.02 * len(reports) + sum(not report for report in reports)
