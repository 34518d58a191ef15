"""Cleaning, sections and labels of reports as hospitals and data sets write them."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamatch_ray.data import phantom
from adamatch_ray.data.cleaning import clean
from adamatch_ray.data.labeler import RuleLabeler, finding_scores
from adamatch_ray.data.reports import Sections, compose_report, split_sections, split_text
from adamatch_ray.schema import CHEXPERT_LABELS

LABELER = RuleLabeler()
FINDINGS, IMPRESSION = "The lungs are clear. There is no effusion.", "No acute cardiopulmonary process."
TOP = "FINAL REPORT\n EXAMINATION:  CHEST\n\n INDICATION:  Cough.\n\n COMPARISON:  None.\n\n"


def mentioned(report: str) -> dict[str, float]:
    values = LABELER.label([report])[0]
    return {name: value for name, value in zip(CHEXPERT_LABELS, values, strict=True) if value is not None}


# ---- numbers --------------------------------------------------------------------------------------------------------

WHOLE = st.integers(0, 9999).map(str)
NUMBERS = st.one_of(
    WHOLE.map(lambda n: (n, n)),
    st.tuples(WHOLE, st.sampled_from(".\u00b7"), WHOLE).map(lambda n: ("".join(n), f"{n[0]}.{n[2]}")),
    WHOLE.map(lambda n: (f".{n}", f".{n}")),
    st.tuples(WHOLE, st.sampled_from("-\u2013\u2212/\u2044"), WHOLE).map(
        lambda n: ("".join(n), n[0] + ("/" if n[1] in "/\u2044" else "-") + n[2])
    ),
    st.tuples(WHOLE, st.sampled_from([" x ", "\u00d7"]), WHOLE).map(lambda n: ("".join(n), f"{n[0]}{n[1]}{n[2]}")),
    st.tuples(WHOLE, st.sampled_from([("\u00bd", "1/2"), ("\u00be", "3/4"), ("\u215b", "1/8")])).map(
        lambda n: (n[0] + n[1][0], f"{n[0]} {n[1][1]}")
    ),
    st.sampled_from(
        [("10\u00b2", "10^2"), ("10\u207b\u00b9\u00b2", "10^-12"), ("\uff11\uff12", "12"), ("\u0663", "3")]
    ),
)
BETWEEN = st.sampled_from(
    [" cm nodule, ", " mm and ", "\u00a0cm\u2003or\u2009", " XXXX ", " ___, ", "\u200bmm seen\u200b", " (",
     ") of ", "; ", " cm\nwide ", " \u2264 ", " of &lt; ", "_x000D_\n about ", "<br>size ", " XXXX. At ", " \u00b1 "]
)  # fmt: skip


def numbers_in(text: str) -> list[str]:
    return re.findall(r"\d+", text.replace("\u00d7", "x"))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.tuples(NUMBERS, BETWEEN), min_size=1, max_size=5))
def test_cleaning_never_changes_a_number(parts: list[tuple[tuple[str, str], str]]) -> None:
    cleaned = clean("Nodule of " + "".join(number + between for (number, _), between in parts) + "cm.")
    wanted = [number.replace("\u00d7", "x") for (_, number), _ in parts]
    place = 0
    for number in wanted:
        found = re.compile(rf"(?<![\d]){re.escape(number)}(?!\d)").search(cleaned, place)
        assert found, (wanted, cleaned)
        place = found.end()
    assert numbers_in(cleaned) == [digits for number in wanted for digits in numbers_in(number)], cleaned


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.text(
        alphabet=st.sampled_from(
            "aB1209 .,;:!?-/()[]&<>_xX|*=+'\"\u2022\u00d8\u2610\uff1a"
            "\n\t\\nr\u00bd\u200b\u2028\ufffd\u00e9\u0663\u2460\ufeff"
        ),
        max_size=60,
    )
)
def test_digits_of_any_text_keep_their_order_and_never_grow_together(text: str) -> None:
    cleaned = clean(text)
    assert cleaned.isascii() and clean(cleaned) == cleaned
    assert set(cleaned) <= {chr(code) for code in range(32, 127)}
    # Cutting a text between two digits that something stands between never gives the longer number of both.
    for longer in re.findall(r"\d{2,}", cleaned):
        assert longer in re.sub(r"[\ufeff]", "", text).replace("\u0663", "3") or "_x" in text or "&" in text, (
            text,
            cleaned,
        )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A 1\u00bd cm nodule.", "A 1 1/2 cm nodule."),
        ("3\u21925 cm, \u226eand 2\u2160", "3->5 cm, >=and 2I"),
        (".5 cm nodule . .7 cm", ".5 cm nodule. .7 cm"),
        ("Grade 3 .5 XXXX.5", "Grade 3 .5 .5"),
        ("Clips: 3. The heart is normal.", "Clips: 3. The heart is normal."),
        ("No effusion._x000D_\nHeart normal.", "No effusion. Heart normal."),
        ("Nodule &amp;lt;5 mm &amp; scar.", "Nodule <5 mm & scar."),
        ("No pleural\u200beffusion, pneumo\u00adthorax.\u2028Clear.", "No pleural effusion, pneumothorax. Clear."),
        ("Lungs clear.\\nHeart normal.<br/>No edema.", "Lungs clear. Heart normal. No edema."),
        ("- No pneumothorax\n- Small effusion", "No pneumothorax. Small effusion"),
        ("No pneumothorax\nSmall effusion", "No pneumothorax. Small effusion"),
        ("NO PNEUMOTHORAX\nSMALL EFFUSION", "NO PNEUMOTHORAX. SMALL EFFUSION"),
        ("no pneumothorax\nsmall effusion", "no pneumothorax. small effusion"),
        ("\u2022 No pneumothorax \u2022 Small effusion", "No pneumothorax. Small effusion"),
        ("<p>No effusion</p>\n\n<p><b>Heart</b> normal</p>", "No effusion. Heart normal"),
        ("| Effusion | none |\n|---|---|\n| Heart | 3 cm |", "Effusion: none. Heart: 3 cm"),
        ("<tr><td>Effusion</td><td>none</td></tr>", "Effusion: none"),
        ("Effusion ........ none, 3 \u2715 4 cm", "Effusion: none, 3 x 4 cm"),
        ("**Lungs:** clear\u3000now", "Lungs: clear now"),
        ("Effusion: \u00d8, nodule \u00d8 5 mm", "Effusion: no, nodule 5 mm"),
        ("#N/A", ""),
        ("--", ""),
        ("No evidence of\nPneumonia or\nEdema", "No evidence of Pneumonia or Edema"),
        ("The heart is enlarged and there are signs of failure as before in this\nPatient", None),
    ],
)  # fmt: skip
def test_what_programs_and_people_leave_in_a_text(text: str, expected: str | None) -> None:
    assert clean(text) == (" ".join(text.split()) if expected is None else expected)


# ---- sections -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["FINDINS", "FINDINDGS", "FINDNGS", "FINIDNGS", "FINDING", "Findings", "FIDINGS"])
@pytest.mark.parametrize(
    "other", ["IMPRESSON", "IMORESSION", "MPRESSION", "CONCUSION", "CONCLUSIONS", "SUMMARY", "Impression"]
)
def test_misspelt_headers_are_headers(word: str, other: str) -> None:
    text = f"{TOP} {word}:  {FINDINGS}\n\n {other}:  {IMPRESSION}\n"
    assert split_sections(text) == Sections(FINDINGS, IMPRESSION) == split_text(text.replace("\n", " "))


@pytest.mark.parametrize(
    "text",
    [
        f"\ufeffFINDINGS: {FINDINGS}\r\nIMPRESSION: {IMPRESSION}\r\n",
        f"FINDINGS: {FINDINGS}\n\nIMPRESSION: {IMPRESSION}\n\nWETREAD:  Prelim says edema.\n",
        f"FINDINGS: {FINDINGS}\nIMPRESSION:\n{IMPRESSION}\n\nEND OF IMPRESSION:\n\nSUMMARY: 2-ABNORMAL\n",
        f"Clinical history: Edema?\nFindings: {FINDINGS}\nImpression: {IMPRESSION}\nRecommendation: Follow-up CT.\n",
        f"TECHNIQUE\nTwo views.\nFINDINGS\n{FINDINGS}\nIMPRESSION\n{IMPRESSION}\n",
        f"FINDINGS: {FINDINGS}\nIMPRESSION: {IMPRESSION}\nADDENDUM 12/3:\nTold to the ward.\n",
        f"History\nEdema?\n\nFindings\n{FINDINGS}\n\nImpression\n{IMPRESSION}\n",
        f"History - Edema?\nFindings - {FINDINGS}\nImpression - {IMPRESSION}\n",
        f"**History:** Edema?\n**Findings:** {FINDINGS}\n**Impression**: {IMPRESSION}\n",
        f"[HISTORY]: Edema?\n[FINDINGS]: {FINDINGS}\n[IMPRESSION]: {IMPRESSION}\n",
        f"<b>HISTORY</b>: Edema?<br><b>FINDINGS</b>: {FINDINGS}<br><b>IMPRESSION</b>: {IMPRESSION}",
        f"| HISTORY | Edema? |\n| FINDINGS | {FINDINGS} |\n| IMPRESSION | {IMPRESSION} |\n",
        f"HISTORY\uff1aEdema?\nFINDINGS\uff1a{FINDINGS}\n\u00a0IMPRESSION\u00a0:\u00a0{IMPRESSION}\n",
        f"F I N D I N G S: {FINDINGS}\n\nI M P R E S S I O N: {IMPRESSION}\n",
        f"FINDlNGS: {FINDINGS}\n\nOPINION: {IMPRESSION}\nHISOTRY: Edema?\n",
        f"FINDINGS: {FINDINGS}\nIMPRESSION: {IMPRESSION}\nDIAGNOSIS: Edema\nSigned by: Dr. Edema\n",
    ],
)
def test_what_stands_around_the_sections_is_left_out(text: str) -> None:
    assert split_sections(text) == split_text(text) == Sections(FINDINGS, IMPRESSION)


@pytest.mark.parametrize(
    "header",
    """Clinical data|Hx|HX|Clin Hx|DIAGNOSIS CODE|Order reason|REQUESTED BY|Ordering diagnosis|PREVIOUS|PRIOR STUDIES
Comparison studies|Technic|Protocol|SYMPTOMS|CHIEF COMPLAINT|REFERRING PHYSICIAN|Provider|Question|INDCATION|HISOTRY
COMPARSION|Reason for exam|Clinical question|Read by radiologist""".replace("\n", "|").split("|")[:-1],
)
def test_what_was_asked_is_never_learnt_as_found(header: str) -> None:
    asked = f"{header}: rule out edema.\n\n"
    text = f"{asked}FINDINGS: {FINDINGS}\n\nIMPRESSION: {IMPRESSION}\n\n{asked}"
    assert split_sections(text) == split_text(text) == Sections(FINDINGS, IMPRESSION)


@pytest.mark.parametrize(
    "line",
    [
        *("Prior granulomatous disease: old.", "Previous sternotomy: wires.", "Study limitations: rotated."),
        *("Questionable nodule: right.", "Differential diagnosis: scar.", "DIFFERENTIAL DIAGNOSIS: scar."),
    ],
)
def test_a_line_of_the_findings_is_no_header(line: str) -> None:
    text = f"HISTORY: Edema?\nFINDINGS: {FINDINGS}\n{line}\nNothing else.\nIMPRESSION: {IMPRESSION}"
    assert split_sections(text) == Sections(f"{FINDINGS}\n{line}\nNothing else.", IMPRESSION)


def test_organs_under_what_was_asked_are_the_findings() -> None:
    text = f"HISTORY: Edema?\nLUNGS: Clear.\nPLEURA: No effusion.\nIMPRESSION: {IMPRESSION}"
    assert split_sections(text) == split_text(text) == Sections("LUNGS: Clear.\nPLEURA: No effusion.", IMPRESSION)


@pytest.mark.parametrize(
    "text",
    [
        *("FINDINGS AND IMPRESSION:", "FINDINGS:\n\nIMPRESSION:\n", "EXAM: CHEST PA AND LATERAL", "HISTORY: Edema."),
        *("CHEST, PA AND LATERAL", "CHEST X-RAY 2 VIEWS", "History: cough and some fever today"),
    ],
)
def test_a_header_is_never_a_report(text: str) -> None:
    assert compose_report(*split_sections(text)) == "" == compose_report(*split_text(text))


def test_a_text_without_headers_is_kept_whole() -> None:
    assert split_text("Lungs: clear.\n\nHeart: normal.") == Sections("Lungs: clear.\n\nHeart: normal.", "")


# ---- labels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Pneumothorax: normal. Effusion - unremarkable", {"Pleural Effusion": 0, "Pneumothorax": 0}),
        ("Chest tube: unremarkable.", {"Support Devices": 1}),
        ("Effusion: none. Pneumothorax: None seen.", {"Pleural Effusion": 0, "Pneumothorax": 0}),
        ("Effusion: none; pneumothorax: small apical", {"Pleural Effusion": 0, "Pneumothorax": 1}),
        ("Effusion, pneumothorax: absent", {"Pleural Effusion": 0, "Pneumothorax": 0}),
        ("Pleural effusion - none.", {"Pleural Effusion": 0}),
        ("Pleural effusion: No pleural effusion seen.", {"Pleural Effusion": 0}),
        ("Effusion: no change. Pneumothorax: N/A.", {"Pleural Effusion": 1, "Pneumothorax": None}),
        ("Pneumothorax\tNone\nEffusion\tSmall", {"Pleural Effusion": 1, "Pneumothorax": 0}),
        ("Pneumothorax? No. Consolidation: Negative.", {"Pneumothorax": 0, "Consolidation": 0}),
        ("Pneumonia: cannot be excluded", {"Pneumonia": -1}),
        ("Heart: enlarged. Pleural effusion: small left.", {"Cardiomegaly": 1, "Pleural Effusion": 1}),
        ("[ ] Pneumothorax\n[x] Pleural effusion", {"Pneumothorax": 0, "Pleural Effusion": 1}),
        ("No pneumothorax\nSmall left pleural effusion", {"Pneumothorax": 0, "Pleural Effusion": 1}),
        ("- No pneumothorax - Small left pleural effusion", {"Pneumothorax": 0, "Pleural Effusion": 1}),
        ("No pneumothorax: chest tube in place", {"Pneumothorax": 0, "Support Devices": 1}),
        ("Pneumothorax [ ]\nPleural effusion [x]", {"Pneumothorax": 0, "Pleural Effusion": 1}),
        ("( ) Pneumothorax\n(x) Pleural effusion", {"Pneumothorax": 0, "Pleural Effusion": 1}),
        ("| Pneumothorax | absent |\n| Effusion | present |", {"Pneumothorax": 0, "Pleural Effusion": 1}),
        ("Absent: pneumothorax, edema\nPresent: effusion", {"Pneumothorax": 0, "Edema": 0, "Pleural Effusion": 1}),
        ("Pneumothorax -> none\nEffusion -> small", {"Pneumothorax": 0, "Pleural Effusion": 1}),
        ("Pneumothorax; none. Edema-none. Effusion: without.", {"Pneumothorax": 0, "Edema": 0, "Pleural Effusion": 0}),
        ("No pneumothorax \u2022 Small effusion", {"Pneumothorax": 0, "Pleural Effusion": 1}),
        ("NO PNEUMOTHORAX\nSMALL EFFUSION", {"Pneumothorax": 0, "Pleural Effusion": 1}),
    ],
)
def test_forms_and_lists_say_what_their_prose_would(text: str, expected: dict[str, float | None]) -> None:
    for told in (text, clean(text)):
        assert {name: mentioned(told).get(name) for name in expected} == expected


@pytest.mark.parametrize(
    "text",
    [
        "Derrame pleural derecho. Cardiomegalia. Opacidad en el lobulo inferior izquierdo.",
        "Pleuraerguss rechts. Herz vergroessert.",
        "Kein Pneumothorax.",
        "Pas de pneumothorax. Cardiomegalie.",
        "asdf qwer zxcv poiu",
    ],
)
def test_a_report_of_which_no_word_is_known_has_no_labels(text: str) -> None:
    assert mentioned(text) == {}
    assert not LABELER.understands(text) and all(map(LABELER.understands, ("Cardiomegaly.", "CXR: Normal")))


def test_phantom_reports_as_lists_and_forms_keep_their_labels() -> None:
    rng_answers = ("None.", "absent", "No", "not seen", "Negative.", "none identified")
    names = {"Pleural Effusion": "Pleural effusion", "Edema": "Pulmonary edema", "Lung Lesion": "Nodule"}
    prose, lists, forms, truth = [], [], [], []
    for index in range(60):
        drawn = phantom.generate(index, 0, side=64)
        report = compose_report(drawn.findings, drawn.impression)
        prose.append(report)
        lists.append("\n".join(f"{'- ' if index % 2 else ''}{line}" for line in report.rstrip(".").split(". ")))
        kept = {
            name: value
            for name, value in zip(CHEXPERT_LABELS, drawn.labels, strict=True)
            if value is not None and name not in ("No Finding", "Support Devices", "Lung Opacity")
        }
        truth.append(tuple(kept.get(name) for name in CHEXPERT_LABELS))
        answers = {1.0: "small", 0.0: rng_answers[index % 6], -1.0: "possible"}
        forms.append("\n".join(f"{names.get(name, name)}: {answers[value]}" for name, value in kept.items()))
    told = [LABELER.label(texts) for texts in (prose, lists, forms)]
    no_finding = CHEXPERT_LABELS.index("No Finding")
    read = [tuple(None if at == no_finding else value for at, value in enumerate(row)) for row in told[2]]
    assert finding_scores(told[0], told[1]).micro.f1 >= 0.98
    assert finding_scores(truth, read).micro.f1 >= 0.98
