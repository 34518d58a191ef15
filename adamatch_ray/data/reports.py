"""Report text: its findings and impression, cleaned (docs/method.md 1.3 and 7).

A report file is sections under upper-case headers; which of them count as findings or impression is decided by the
words in the header, because a header such as "PA AND LATERAL CHEST RADIOGRAPH:" may stand where "FINDINGS:" should.
"""

import re
import unicodedata
from dataclasses import dataclass

MIN_TOKENS = 3

_HEADER = re.compile(
    # An upper-case phrase that begins a line and ends in a colon (not a clock's), or findings/impression in any case.
    r"^[ \t]*(?P<line>[A-Z][A-Z0-9 ,/&()'#.+-]{1,70}|(?i:findings|impression))[ \t]*:(?!\d)"
    # The same two words alone on a line, or in the middle of one.
    r"|^[ \t]*(?P<alone>FINDINGS|IMPRESSION|FINAL REPORT|(?:FINAL )?ADDENDUM)[ \t]*$"
    r"|(?<=[\s.])(?P<inline>FINDINGS|IMPRESSION):"
    # A preliminary reading carries a date after its name, and often no colon.
    r"|^[ \t]*(?P<wet>WET READ)\b[^\n]*$",
    re.MULTILINE,
)
_FRAME = ("WET READ", "FINAL REPORT", "ADDENDUM")
_OTHER = (
    *("EXAM", "REASON", "INDICATION", "HISTORY", "TECHNIQUE", "COMPARISON", "PROCEDURE", "RECOMMENDATION"),
    *("NOTIFICATION", "CLINICAL", "STUDY", "DATE", "SIGNED", "DICTATED", "NOTE", "CONTRAST", "PATIENT"),
)
_VIEW = re.compile(r"\b(CHEST|VIEWS?|RADIOGRAPHS?|FRONTAL|LATERAL|PORTABLE|AP|PA|CXR)\b")

_NOTHING = frozenset(("", "nan", "null", "none", "n/a", "na"))
_LETTERS = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201a\u2032", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u2033", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-"),
        **dict.fromkeys("\u2022\u00b7\u25cf\u25aa", " "),
        **{"\u2026": "...", "\u00d7": "x", "\u00b5": "u", "\u00b0": " degrees", "\u00b1": "+/-"},
        **{"\u2264": "<=", "\u2265": ">=", "\u00df": "ss", "\u00f8": "o", "\u00e6": "ae", "\ufffd": ""},
    }
)
_MARK = r"(?:_{2,}|X{4,})"
_HIDDEN = re.compile(rf"(?:\b[xX][-/ ])?{_MARK}(?:[-/][aA][-/]{_MARK})?(?:'?(?:s|t|th|nd|rd)\b)?")
_AROUND_MARKS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"[-/&]?\s*\0(?:\s*[-/&:]?\s*\0)*\s*[-/&]?", " \0 "),  # A/\0, \0-\0, \0-year-old
        (r"[(\[<]\s*\0[\s\0.,;:]*[)\]>]|<\s*\0|\0\s*>", " \0 "),  # brackets with nothing left in them
        (r"^[\s.,;:!?)]*(?:\0[\s.,;:!?)]*)+", ""),
        (r"([.!?])\s*(?:\0[\s.,;:]*)+", r"\1 "),
        (r"[,;:]\s*(?:\0[\s,;:]*)+([.!?])", r"\1"),
        (r"([,;:])\s*(?:\0[\s,;:]*)+", r"\1 "),
        (r"[\s\0]+([.,;:!?)\]])", r"\1"),
        (r"([(\[])[\s\0]+", r"\1"),
        (r"\0", " "),
        (r"\.{2,}", "."),
        (r"^[\s.,;:!?)]+", ""),
    )
]
_NUMBER = re.compile(r"(?<![\w.,/-])\(?(\d{1,2})[.)]\s*(?=[A-Za-z_<(])")
_SENTENCE_START = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ_")


@dataclass(frozen=True)
class Sections:
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
    headed by something else (indication, comparison, ...) as findings; one of a single paragraph is kept whole.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    parts = _parts(text)
    findings, impression = _last(parts, "findings") or _last(parts, "view"), _last(parts, "impression")
    if findings or impression:
        return Sections(findings, impression)
    return Sections(_last_paragraph(text), "")


def clean(text: str) -> str:
    """Plain words: ASCII, single spaces, no de-identification marks, no list numbers.

    `___` and `XXXX` go with what is glued to them ("x-XXXX") and leave no stray punctuation. A text that only says
    that there is none ("NULL", "nan") is empty.
    """
    text = unicodedata.normalize("NFKD", text.translate(_LETTERS)).encode("ascii", "ignore").decode()
    text = _without_numbers(text)
    text = _without_marks(text)
    return "" if text.strip(" .").lower() in _NOTHING else text


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
        new = _kind(match.group("line") or match.group("alone") or match.group("inline") or match.group("wet"))
        # "LUNGS:" or "AP CHEST:" within the findings is a part of them.
        if not new or (new == "view" and kind in ("findings", "impression") and text[start : match.start()].strip()):
            continue
        if new == "view" and kind == "impression":
            continue
        parts.append(_Part(kind, text[start : match.start()].strip()))
        kind, start = new, match.end()
    return [*parts, _Part(kind, text[start:].strip())]


def _kind(header: str) -> str:
    header = header.upper()
    if any(word in header for word in _FRAME):
        return "frame"
    if "FINDING" in header:
        return "findings"
    if "IMPRESSION" in header or "CONCLUSION" in header:
        return "impression"
    if any(word in header for word in _OTHER):
        return "other"
    return "view" if _VIEW.search(header) else ""


def _last(parts: list[_Part], kind: str) -> str:
    return next((part.body for part in reversed(parts) if part.kind == kind and part.body), "")


def _last_paragraph(text: str) -> str:
    frames = [match.end() for match in _HEADER.finditer(text) if _kind(match.group().strip(" \t:\n")) == "frame"]
    body = text[frames[-1] :] if frames and text[frames[-1] :].strip() else text
    paragraphs = [part.strip() for part in re.split(r"\n[ \t]*\n", body) if part.strip(" \t\n_")]
    if len(paragraphs) <= 1:
        return "".join(paragraphs)
    plain = [part for part in paragraphs if not ((found := _HEADER.match(part)) and _kind(found.group()) == "other")]
    return plain[-1] if plain else ""


def _without_numbers(text: str) -> str:
    """Drop the "1." of a list: where a sentence begins, or anywhere if the number before it was dropped too.

    Elsewhere a number ends a sentence ("... the level of rib\\n 3. The heart") and stays.
    """
    seen = 0

    def drop(match: re.Match[str]) -> str:
        nonlocal seen
        before, number = text[: match.start()], int(match.group(1))
        begins = not before.strip() or before.rstrip()[-1] in ".:;!?" or re.search(r"\n[ \t]*\n[ \t]*$", before)
        if not begins and not (seen and number == seen + 1 and text[match.end() : match.end() + 1] in _SENTENCE_START):
            return match.group()
        seen = number
        return " " if begins else ". "

    return _NUMBER.sub(drop, text)


def _without_marks(text: str) -> str:
    """Take out the marks of removed names, and the punctuation that only belonged to them."""
    text = _HIDDEN.sub("\0", text)
    for pattern, replacement in _AROUND_MARKS:
        text = pattern.sub(replacement, text)
    return " ".join(text.split())
