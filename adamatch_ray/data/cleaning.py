"""Report text as plain words: what escapes, list marks, de-identification and foreign letters leave of it.

Numbers are never changed. Two never become one, none loses its point, its sign or its fraction; only the numbers that
count the items of a list go.
"""

import html
import re
import unicodedata
from functools import lru_cache

_NOTHING = frozenset(("", "nan", "null", "none", "n/a", "na"))
_ESCAPES = (
    (re.compile(r"_x([0-9A-Fa-f]{4})_"), lambda match: chr(int(match[1], 16))),  # Excel's
    (re.compile(r"&(?:#\d{1,6}|#x[0-9A-Fa-f]{1,5}|[A-Za-z]{2,8}\d{0,2});"), lambda match: html.unescape(match[0])),
    (re.compile(r"</?(?:br|p|div|li|ul|ol|table|tbody|tr|h[1-6])\b[^<>]*>", re.IGNORECASE), "\n"),
    (re.compile(r"</?t[dh]\b[^<>]*>", re.IGNORECASE), "|"),
    (re.compile(r"</?(?:b|i|u|em|strong|span|font)\b[^<>]*>|\*{2,}", re.IGNORECASE), " "),  # Markdown's, too
    (re.compile(r"\\r\\n|\\[nrt]"), "\n"),
    (re.compile(r"\r\n?|[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]"), "\n"),
    (re.compile(r"[\u00ad\u200c-\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]"), ""),  # nobody sees them
    (re.compile(r"[\x00-\x08\x0e-\x1f\x7f\u00a0\u1680\u2000-\u200b\u202f\u205f\u3000]"), " "),
    (re.compile("\uff1a"), ":"),
    (re.compile(r"^[ \t]*\|[-:| \t]*|[-:| \t]*\|[ \t]*$", re.MULTILINE), ""),  # a table's frame
    (re.compile(r"[ \t]*\|[ \t|]*|(?<=\w)[ \t]*\.{4,}[ \t]*(?=\w)"), ": "),  # from a name to what is said of it
    (re.compile(r"[ \t]*[\u2022\u25cf\u25aa\u25e6\u2023\u2043\u25a0\u25ba][ \t]*"), "\n- "),
)
_SUPERSCRIPTS = "\u00b2\u00b3\u00b9\u2070\u2074-\u207b"
_FRACTIONS = "\u00bc-\u00be\u2150-\u215e\u2189"
_NUMBERS = (
    (re.compile(r"(?<=\d)[\u00b7\u066b\u22c5](?=\d)"), "."),  # a raised dot
    (re.compile(rf"(?<=[\d)])(?=[{_SUPERSCRIPTS}])"), "^"),
    (re.compile(rf"(?<=\d)(?=[{_FRACTIONS}])"), " "),
    (re.compile(r"(?<!\w)[\u00d8\u00f8\u2205](?!\w|\s*\d)"), "no"),  # before a number it says diameter
)
_LETTERS = {
    **dict.fromkeys("\u2018\u2019\u201a\u2032", "'"),
    **dict.fromkeys("\u201c\u201d\u201e\u2033", '"'),
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u207b", "-"),
    **dict.fromkeys("\u2044\u2215\u00f7", "/"),
    **dict.fromkeys("\u2264\u2a7d\u226f", "<="),
    **dict.fromkeys("\u2265\u2a7e\u226e", ">="),
    **dict.fromkeys("\u2248\u223c", "~"),
    **dict.fromkeys("\u00d7\u2715\u2716\u2a2f", "x"),
    **{"\u2217": "*", "\u2610": "[ ]", "\u2611": "[x]", "\u2612": "[x]"},
    **{"\u2026": "...", "\u00b5": "u", "\u03bc": "u", "\u00b0": " degrees", "\u00b1": "+/-"},
    **{"\u2260": "!=", "\u2030": " per mille", "\u2190": "<-", "\u2192": "->"},
    **{"\u2191": " increased ", "\u2193": " decreased "},
    **{"\u00df": "ss", "\u00f8": "o", "\u00e6": "ae", "\u0153": "oe"},
}
_FOREIGN = re.compile(r"[^\x00-\x7f]")
# A line that begins with a bullet, a heading or a capital is a statement of its own where the line before had room.
_BULLET = re.compile(r"^[ \t]*[-*+\u00b7\u2013][ \t]+(?=\S)")
_BEGINS = (
    r"(?i:no|there|hearts?|lungs?|small|mild|minimal|moderate|large|normal)"  # where nothing or all is in capitals
)
_STATEMENT = re.compile(
    rf"[ \t]*(?:(?P<heading>[A-Z][A-Za-z /()-]{{2,40}}:|[\[(] ?[xX*+]?[\])])|(?P<word>[A-Z][a-z]+|{_BEGINS})\b)"
)
_GOES_ON = re.compile(
    r"(?:\b(?:a|an|and|are|as|at|by|compared|for|from|in|is|no|of|on|or|per|than|the|to|via|was|with|without|Dr|Mrs?)"
    r"|[^\w)\]%\"'])\s*$"
)
_PAGE = 60
"""Letters in a line below which no text is broken to fit the page."""

_MARK = r"(?:_{2,}|X{4,})"
_HIDDEN = re.compile(rf"(?:\b[xX][-/ ])?{_MARK}(?:[-/][aA][-/]{_MARK})?(?:'?(?:s|t|th|nd|rd)\b)?")
_STOP = r"(?:[:;!?)]|[.,](?!\d))"  # punctuation, but not the point of ".5"
_AROUND_MARKS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"[-/&]?\s*\0(?:\s*[-/&:]?\s*\0)*\s*[-/&]?", " \0 "),  # A/\0, \0-\0, \0-year-old
        (r"[(\[<]\s*\0[\s\0.,;:]*[)\]>]|<\s*\0|\0\s*>", " \0 "),  # brackets with nothing left in them
        (rf"^(?:\s|{_STOP})*(?:\0(?:\s|{_STOP})*)+", ""),
        (rf"([.!?])\s*(?:\0(?:\s|{_STOP})*)+", r"\1 "),
        (r"[,;:]\s*(?:\0[\s,;:]*)+([.!?])(?!\d)", r"\1"),
        (r"([,;:])\s*(?:\0(?:\s|[;:]|,(?!\d))*)+", r"\1 "),
        (rf"[\s\0]+({_STOP}|\])(?!\d)", r"\1"),
        (r"([(\[])[\s\0]+", r"\1"),
        (r"\0", " "),
        (r"\.{2,}(?!\.|\d)", "."),
        (rf"^(?:\s|{_STOP})+", ""),
    )
]
_ITEM = re.compile(r"(?<![\w.,/-])\(?(\d{1,2})[.)]\s*(?=[A-Za-z_<(])")
_SENTENCE_START = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ_")


def clean(text: str) -> str:
    """Plain words: ASCII, single spaces, no de-identification marks, no list numbers, a full stop after list items.

    `___` and `XXXX` go with what is glued to them ("x-XXXX") and leave no stray punctuation. A text that only says
    that there is none ("NULL", "nan") is empty.
    """
    text = _without_marks(_without_items(_ascii(close_lines(plain_lines(text)))))
    return "" if text.strip(" .-#<>").lower() in _NOTHING else text


def plain_lines(text: str) -> str:
    """A text as its author saw it: real line ends, no escapes of HTML and spreadsheets, nothing invisible."""
    before = None
    while text != before:  # what was escaped twice
        before = text
        for pattern, replacement in _ESCAPES:
            text = pattern.sub(replacement, text)
    return text


def close_lines(text: str) -> str:
    """A full stop after each line of a list; a line that was only broken to fit the page goes on in the next."""
    lines = text.split("\n")
    if len(lines) == 1:
        return text
    page = max(_PAGE, *map(len, lines))
    closed: list[str] = []
    for line in lines:
        bullet = _BULLET.match(line)
        line = line[bullet.end() :] if bullet else line
        statement = _STATEMENT.match(line)
        at = next((at for at in range(len(closed) - 1, -1, -1) if closed[at].strip()), 0)
        last = closed[at].rstrip() if closed else ""
        if last and not _GOES_ON.search(last) and (bullet or (statement and _had_room(last, statement, page))):
            closed[at] = f"{last}."
        closed.append(line)
    return "\n".join(closed)


def _had_room(line: str, following: re.Match[str], page: int) -> bool:
    """Whether a line ends before the page does, so that its end was meant."""
    return bool(following["heading"]) or len(line) + 1 + len(following["word"]) <= page


def _ascii(text: str) -> str:
    if text.isascii():
        return text
    for pattern, replacement in _NUMBERS:
        text = pattern.sub(replacement, text)
    return _FOREIGN.sub(_plain_letter, text)


def _plain_letter(match: re.Match[str]) -> str:
    """A letter or sign as ASCII, with a gap where its digits, or its absence, would join numbers beside it."""
    letter, text = match.group(), match.string
    plain, before, after = (
        _spelled(letter),
        text[match.start() - 1 : match.start()],
        text[match.end() : match.end() + 1],
    )
    if letter.isdecimal():
        return plain
    if not plain:
        return " " if before.isdigit() and after.isdigit() else ""
    left = " " if plain[0].isdigit() and before.isdigit() and not _is_power(before) else ""
    right = " " if plain[-1].isdigit() and after.isdigit() and not _is_power(after) else ""
    return f"{left}{plain}{right}"


def _is_power(letter: str) -> bool:
    return re.fullmatch(f"[{_SUPERSCRIPTS}]", letter) is not None


@lru_cache(maxsize=4096)
def _spelled(letter: str) -> str:
    """One letter or sign in ASCII; nothing for one that only another script has, a blank for other signs."""
    if letter in _LETTERS:
        return _LETTERS[letter]
    if letter.isdecimal():
        return str(unicodedata.decimal(letter))
    parts = unicodedata.normalize("NFKD", letter)
    plain = "".join(_LETTERS.get(part, part if part.isascii() else "") for part in parts)
    return plain if plain or unicodedata.category(letter)[0] in "LM" or letter == "\ufffd" else " "


def _without_items(text: str) -> str:
    """Drop the "1." of a list: where a sentence begins, or anywhere if the number before it was dropped too.

    Elsewhere a number ends a sentence ("... the level of rib\\n 3. The heart") and stays.
    """
    seen = 0

    def drop(match: re.Match[str]) -> str:
        nonlocal seen
        before, number = text[: match.start()], int(match.group(1))
        begins = not before.strip() or before.rstrip()[-1] in ".:;!?" or re.search(r"\n[ \t]*\n[ \t]*$", before)
        follows = seen and number == seen + 1 and text[match.end() : match.end() + 1] in _SENTENCE_START
        if not follows and not (begins and number in (1, seen + 1)):
            return match.group()
        seen = number
        return " " if begins else ". "

    return _ITEM.sub(drop, text)


def _without_marks(text: str) -> str:
    """Take out the marks of removed names, and the punctuation that only belonged to them."""
    text = _HIDDEN.sub("\0", text)
    for pattern, replacement in _AROUND_MARKS:
        text = pattern.sub(replacement, text)
    return " ".join(text.split())
