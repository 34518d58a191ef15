"""Report text: its findings and impression, cleaned (docs/method.md 1.3 and 7).

A report file is sections under headers; which of them count as findings or impression is decided by the words in the
header, because a header such as "PA AND LATERAL CHEST RADIOGRAPH:" may stand where "FINDINGS:" should.
"""

import difflib
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from adamatch_ray.data.cleaning import clean, plain_lines

MIN_TOKENS = 3

_KINDS = (
    ("frame", ("WET READ", "WETREAD", "FINAL REPORT", "ADDENDUM", "PRELIMINARY")),
    ("other", ("END OF",)),
    ("findings", ("FINDING",)),
    ("impression", ("IMPRESSION", "CONCLUSION")),
    (
        "other",
        (
            *("EXAM", "REASON", "INDICATION", "HISTORY", "TECHNIQUE", "COMPARISON", "PROCEDURE", "RECOMMENDATION"),
            *("NOTIFICATION", "CLINICAL", "STUDY", "DATE", "SIGNED", "DICTATED", "NOTE", "CONTRAST", "PATIENT"),
            *("ACCESSION", "ATTENDING", "ELECTRONICALLY", "CLIN", "HX", "SYMPTOM", "COMPLAINT", "CHIEF", "ORDER"),
            *("REQUEST", "REFERR", "PHYSICIAN", "PROVIDER", "PROTOCOL", "TECHNIC", "STUDIES", "ADMITTING"),
            *("DIAGNOSIS CODE", "RADIOLOGIST", "APPROVED", "VERIFIED", "TRANSCRIBED"),
        ),
    ),
    ("summary", ("SUMMARY",)),
)
"""What a header is, by the first row of which a word of it begins like one."""

_WHOLE = {
    **dict.fromkeys(("OPINION", "ASSESSMENT", "INTERPRETATION", "DIAGNOSIS", "IMP"), "summary"),
    **dict.fromkeys(("PRIOR", "PRIORS", "PREVIOUS", "QUESTION"), "other"),
}
"""Headers by all their words: "differential diagnosis" and "previous sternotomy" are none."""
_MISSPELT = {
    **{"FINDINGS": "findings", "IMPRESSION": "impression", "CONCLUSION": "impression"},
    **dict.fromkeys(("INDICATION", "HISTORY", "COMPARISON", "TECHNIQUE", "EXAMINATION"), "other"),
}
_ORGAN = re.compile(
    r"(?:LUNG|PLEURA|HEART|CARDI|MEDIASTIN|BONE|OSSEOUS|AIRWAY|DIAPHRAGM|LINES|TUBES|DEVICES|SUPPORT DEV)"
)
_WORDS = "|".join(word for _, words in _KINDS for word in words)
_NAMES = "|".join(word.capitalize() for word in _WORDS.split("|") if word != "NOTE")
_TITLE = (
    rf"(?:{_NAMES})[a-z]*(?:[ /](?:[A-Z][a-z]+|and|by|data|date|diagnosis|exam\w*|findings|for|history|hx|indication"
    r"|info\w*|of|physician|question|reason|studies|the)){0,3}"
)
_PICTURE = (
    "CHEST|X-?RAYS?|XR|CXR|RADIOGRAPHS?|VIEWS?|FRONTAL|LATERAL|PORTABLE|UPRIGHT|SUPINE|PA|AP|AND|OF|THE|ONE|TWO|SINGLE"
)
_HEADER = re.compile(
    # An upper-case phrase, a title that begins with a section's name, or a single word, at the start of a line and
    # before a colon (not a clock's).
    rf"^[ \t]*\[?(?P<line>[A-Z](?:[A-Z0-9 ,/&()'#+-]|\.(?! )){{1,70}}|{_TITLE}"
    rf"|[A-Z][A-Za-z]{{2,14}}(?: exam\w*| studies)?|(?i:findings|impression))\]?[ \t]*:(?!\d)"
    # A section's name alone on a line, or in the middle of one, as where a whole report stands in a line.
    rf"|^[ \t]*(?P<alone>[A-Z]{{6,15}}|FINAL REPORT|(?:(?:{_PICTURE}|\d)\b[ ,/&()-]*)+|{_TITLE})[ \t]*$"
    rf"|(?<=[\s.])(?P<inline>(?:{_WORDS})[A-Z ()/&]{{0,40}}|[A-Z]{{7,14}}|{_TITLE}):(?!\d)"
    rf"|^[ \t]*(?P<dashed>(?:{_WORDS})[A-Z]*(?: [A-Z]+){{0,3}}|{_TITLE})[ \t]+-+[ \t]"
    # A preliminary reading or an addendum carries a date after its name, and often no colon.
    r"|^[ \t]*(?P<dated>WET ?READ\b[^\n]*|(?:FINAL )?ADDENDUM[^\n:a-z]*)$",
    re.MULTILINE,
)
_VIEW = re.compile(r"\b(CHEST|VIEWS?|RADIOGRAPHS?|FRONTAL|LATERAL|PORTABLE|AP|PA|CXR)\b")


class Sections(NamedTuple):
    """The two parts of a report that describe the image; either may be empty."""

    findings: str
    impression: str


@dataclass(frozen=True)
class _Part:
    kind: str
    body: str


def split_sections(text: str) -> Sections:
    """Findings and impression of a report file, as written there.

    The last non-empty one of a repeated header wins. A report with neither gives its last paragraph that is not
    headed by something else (indication, comparison, ...) as findings.
    """
    text = plain_lines(text)
    return _described(_parts(text)) or Sections(_last_paragraph(text), "")


def split_text(text: str) -> Sections:
    """Findings and impression of a text that may be a whole report or a section alone, which is then kept whole."""
    parts = _parts(plain_lines(text))
    # What stands before the first header, or in a frame, is the report where no part says that it is.
    plain = "\n".join(part.body for part in parts if part.kind in ("", "frame") and part.body)
    return _described(parts) or Sections(plain, "")


def compose_report(findings: str, impression: str) -> str:
    """The report a model sees: cleaned findings, then cleaned impression."""
    first, second = clean(findings), clean(impression)
    if first and second and first[-1] not in ".!?":
        first += "."
    return f"{first} {second}".strip()


def count_tokens(report: str) -> int:
    """Words of a report, punctuation not counted."""
    return len(re.findall(r"\w+", report))


def report_problem(report: str) -> str | None:
    """Why a composed report cannot be used, or None."""
    tokens = count_tokens(report)
    if tokens == 0:
        return "empty report"
    return f"fewer than {MIN_TOKENS} tokens" if tokens < MIN_TOKENS else None


def _parts(text: str) -> list[_Part]:
    parts: list[_Part] = []
    kind, start = "", 0
    for match in _HEADER.finditer(text):
        new = _kind(next(filter(None, match.groups())), begins_line=bool(match["line"] or match["alone"]))
        if new == "organ" and kind == "other":  # findings without a header of their own
            parts.append(_Part(kind, text[start : match.start()].strip()))
            kind, start = "findings", match.start()
        # "LUNGS:" or "AP CHEST:" within the findings is a part of them.
        if new in ("", "organ") or (
            new == "view" and kind in ("findings", "impression") and text[start : match.start()].strip()
        ):
            continue
        if new == "view" and kind == "impression":
            continue
        parts.append(_Part(kind, text[start : match.start()].strip()))
        kind, start = new, match.end()
    return [*parts, _Part(kind, text[start:].strip())]


def _described(parts: list[_Part]) -> Sections | None:
    """Findings and impression, or what stands for them; None where there is neither."""
    findings = _last(parts, "findings") or _last(parts, "view")
    impression = _last(parts, "impression") or _last(parts, "summary")
    return Sections(findings, impression) if findings or impression else None


@lru_cache(maxsize=4096)
def _kind(header: str, begins_line: bool = True) -> str:
    words = header.upper().split()
    if all(len(word) == 1 for word in words):
        words = ["".join(words)]  # F I N D I N G S
    title = " ".join(words)
    for kind, names in _KINDS:
        if re.search(rf"\b(?:{'|'.join(names)})", title):
            return kind
    if title in _WHOLE:
        return _WHOLE[title]
    if begins_line and _ORGAN.match(title):
        return "organ"
    for word in words:
        if near := difflib.get_close_matches(word, _MISSPELT, 1, 0.85):
            return _MISSPELT[near[0]]
    return "view" if begins_line and _VIEW.search(header) else ""


def _last(parts: list[_Part], kind: str) -> str:
    return next((part.body for part in reversed(parts) if part.kind == kind and part.body), "")


def _last_paragraph(text: str) -> str:
    """The last paragraph that is no header alone and not under that of another section, nor before a frame's end."""
    frames = [match.end() for match in _HEADER.finditer(text) if _kind(match.group().strip(" \t:\n")) == "frame"]
    body = text[frames[-1] :] if frames and text[frames[-1] :].strip() else text
    paragraphs = [part.strip() for part in re.split(r"\n[ \t]*\n", body) if part.strip(" \t\n_")]
    headed = [(part, _HEADER.match(part)) for part in paragraphs]
    plain = [part for part, header in headed if not (header and _kind(header.group().strip(" \t:")) == "other")]
    return plain[-1] if plain and any(part.body for part in _parts(plain[-1])) else ""
