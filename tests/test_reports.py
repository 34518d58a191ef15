"""Reports as hospitals write them: the right sections are found and the text that is left is plain."""

from pathlib import Path

import pytest

from adamatch_ray.data.openi import list_openi
from adamatch_ray.data.reports import (
    Sections,
    clean,
    compose_report,
    count_tokens,
    report_problem,
    split_sections,
)

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "openi"

USUAL = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___ year old with a cough

 COMPARISON:  ___ at 10:15.

 FINDINGS:

 The lungs are clear. The heart
 is normal in size.

 IMPRESSION:

 No acute process.
"""


def test_headers_on_their_own_lines() -> None:
    assert split_sections(USUAL) == Sections("The lungs are clear. The heart\n is normal in size.", "No acute process.")
    assert split_sections(USUAL.replace("\n", "\r\n")) == split_sections(USUAL)


def test_text_on_the_headers_line() -> None:
    assert split_sections(" FINDINGS:  Clear lungs.\n IMPRESSION:  Normal.") == Sections("Clear lungs.", "Normal.")


def test_header_under_an_empty_findings_is_not_swallowed() -> None:
    assert split_sections(" FINDINGS:\n IMPRESSION:  No effusion.\n") == Sections("", "No effusion.")
    assert split_sections(" FINDINGS:\n \n IMPRESSION:\n \n No effusion.\n") == Sections("", "No effusion.")
    text = " FINDINGS:\n PA AND LATERAL CHEST:  The lungs are clear.\n IMPRESSION:  Normal."
    assert split_sections(text) == Sections("The lungs are clear.", "Normal.")


def test_impression_in_the_middle_of_a_line() -> None:
    text = " FINDINGS: There is a small effusion. IMPRESSION: Small effusion."
    assert split_sections(text) == Sections("There is a small effusion.", "Small effusion.")


def test_the_last_of_repeated_headers_wins_unless_it_is_empty() -> None:
    text = " IMPRESSION: Old reading.\n FINDINGS: One.\n ADDENDUM\n IMPRESSION: New reading.\n FINDINGS:\n"
    assert split_sections(text) == Sections("One.", "New reading.")


def test_a_preliminary_reading_is_left_out() -> None:
    wet = "WET READ: ___ ___ 9:12 PM\n  No pneumothorax on the wet reading.\n______________\n"
    assert split_sections(wet + USUAL) == split_sections(USUAL)
    plain = wet + "                                 FINAL REPORT\n Clear lungs and a normal heart.\n"
    assert split_sections(plain) == Sections("Clear lungs and a normal heart.", "")


def test_a_report_of_one_paragraph_is_kept_whole() -> None:
    text = "                                 FINAL REPORT\n AP chest: lungs are clear.\n No effusion is seen.\n"
    assert split_sections(text) == Sections("AP chest: lungs are clear.\n No effusion is seen.", "")
    text = " Lungs are clear. No effusion is seen.\n There is no pneumothorax.\n"
    assert split_sections(text).findings == text.strip()


def test_without_either_section_the_last_paragraph_is_used() -> None:
    text = " HISTORY:  Cough.\n \n COMPARISON:  None.\n \n The heart is normal.\n \n The lungs are clear.\n"
    assert split_sections(text) == Sections("The lungs are clear.", "")
    trailing = text + " \n NOTIFICATION:  Told to the ward at noon.\n"
    assert split_sections(trailing) == Sections("The lungs are clear.", "")


def test_a_view_as_header_stands_for_findings_but_never_over_them() -> None:
    text = " HISTORY: Fever.\n\n PORTABLE UPRIGHT AP VIEW OF THE CHEST:  Low volumes.\n\n IMPRESSION: No change.\n"
    assert split_sections(text) == Sections("Low volumes.", "No change.")
    text = " FINDINGS: Clear lungs.\n IMPRESSION:\n AP CHEST:  No change.\n"
    assert split_sections(text).findings == "Clear lungs."
    assert "No change." in split_sections(text).impression


def test_organs_as_headers_stay_in_the_findings() -> None:
    text = " FINDINGS:\n LUNGS: Clear.\n HEART: Normal.\n IMPRESSION: Normal."
    assert clean(split_sections(text).findings) == "LUNGS: Clear. HEART: Normal."


def test_headers_in_other_case_and_combined() -> None:
    assert split_sections("Findings: Clear lungs.\nImpression: Normal.") == Sections("Clear lungs.", "Normal.")
    assert split_sections(" FINDINGS AND IMPRESSION: Clear lungs.\n").findings == "Clear lungs."
    assert split_sections(" RECOMMENDATION(S): CT.\n IMPRESSION: Nodule.\n RECOMMENDATION: CT.") == Sections(
        "", "Nodule."
    )


@pytest.mark.parametrize("text", ["", "  \n \n", "\n______\n", " HISTORY: Cough.\n \n COMPARISON: None.\n"])
def test_nothing_to_find_gives_nothing(text: str) -> None:
    assert split_sections(text) == Sections("", "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  heart\n is   normal.\t", "The heart is normal."),
        ("Compared to ___, no change.", "Compared to, no change."),
        ("Seen on ___ .", "Seen on."),
        ("Normal chest x-XXXX.", "Normal chest."),
        ("XXXX XXXX. The lungs are clear.", "The lungs are clear."),
        ("No XXXX, XXXX, or effusion", "No, or effusion"),
        ("Left XXXX-a-XXXX is in place.", "Left is in place."),
        ("XXXX/XXXX opacity (XXXX).", "opacity."),
        ("A XXXX-year-old with dual-XXXX pacer", "A year-old with dual pacer"),
        ("pneumonia/XXXX. Clear XXXX..", "pneumonia. Clear."),
        ("Dr. ___ was told by ___ at ___:___.", "Dr. was told by at."),
        ("Effusion (left, 1.5 cm).", "Effusion (left, 1.5 cm)."),
        ("<XXXX, 3 mm nodule", "3 mm nodule"),
        ("x-ray in T11-T12, 3.2/4.1 cm: AP/PA", "x-ray in T11-T12, 3.2/4.1 cm: AP/PA"),
    ],
)
def test_marks_of_removed_names_leave_no_stray_punctuation(text: str, expected: str) -> None:
    assert clean(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1. No effusion. 2. Stable heart.", "No effusion. Stable heart."),
        ("1. No effusion\n 2. Stable heart", "No effusion. Stable heart"),
        ("1) No effusion. 2) Stable heart.", "No effusion. Stable heart."),
        ("1.No effusion. 2.Stable heart.", "No effusion. Stable heart."),
        ("As follows: 1. Nodule of 1.5 cm. 2. Clips.", "As follows: Nodule of 1.5 cm. Clips."),
        (
            "Fracture of the level of rib\n 3. The heart is normal.",
            "Fracture of the level of rib 3. The heart is normal.",
        ),
        ("Catheter at T 4. The lungs are clear.", "Catheter at T 4. The lungs are clear."),
        ("1. ___ opacity.", "opacity."),
    ],
)
def test_list_numbers_go_and_other_numbers_stay(text: str, expected: str) -> None:
    assert clean(text) == expected


def test_letters_beyond_ascii_become_plain() -> None:
    assert clean("\u201cKerley\u201d lines \u2013 patient\u2019s caf\u00e9, 5 \u00b5m, 30\u00b0, ≥2\u00a0cm") == (
        '"Kerley" lines - patient\'s cafe, 5 um, 30 degrees, >=2 cm'
    )
    assert clean("Universit\ufffd hospital?") == "Universit hospital?"
    assert clean("• Clear lungs").isascii() and clean("• Clear lungs") == "Clear lungs"


@pytest.mark.parametrize("text", ["", "NULL", "nan", "None.", " n/a ", "XXXX.", "___", "..."])
def test_texts_that_say_nothing_are_empty(text: str) -> None:
    assert clean(text) == ""


def test_report_is_findings_then_impression() -> None:
    assert compose_report("Clear lungs", "1. Normal.") == "Clear lungs. Normal."
    assert compose_report("", "Normal.") == "Normal."
    assert compose_report("Clear lungs.", "NULL") == "Clear lungs."


def test_short_and_empty_reports_are_named() -> None:
    assert report_problem("") == report_problem(". , -") == "empty report"
    assert report_problem("Normal chest.") == "fewer than 3 tokens"
    assert report_problem("Normal chest radiograph.") is None
    assert count_tokens("No pleural effusion, 3 cm.") == 5


def test_cleaning_twice_changes_nothing() -> None:
    texts = ["1. A-XXXX (x-XXXX), ___: B. 2. C", USUAL, "Dr. ___/___ -- seen; . , XXXX's", "(XXXX) / XXXX-XXXX & XXXX"]
    for text in texts:
        assert clean(clean(text)) == clean(text)


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="no real reports at ../shared/data")
def test_real_reports_come_out_plain() -> None:
    reports = {row["study_id"]: (row["findings"], row["impression"]) for row in list_openi(str(DATA))}
    cleaned = [compose_report(*sections) for sections in reports.values()]
    assert sum(not text for text in cleaned) == 21
    assert not [text for text in cleaned if "XXXX" in text or "__" in text or not text.isascii()]
    assert not [text for text in cleaned if clean(text) != text]
    words = sum(text.count("effusion") for text in cleaned)
    assert words == sum("".join(sections).count("effusion") for sections in reports.values())
