"""Anyone's table — CSV, JSON or parquet, packed or not — as rows of cells, whatever wrote it.

What a file is, is told by its content, not by its name. Text stays text ("001" and "NA" are themselves); only what
means that there is no value is an empty cell. Every fault is a ValueError of one line that names the file.
"""

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from adamatch_ray.data import sources
from adamatch_ray.files import HEAD, no_data

Cells = dict[str, Any]
"""One row by column: text, or what JSON and parquet hold besides; an empty string where there is no value."""

LONGEST_LINE = 1 << 24
LONGEST_LIST = 1 << 28
_MISSING = frozenset(("", "nan", "none", "null", "<na>", "nat", "#n/a", "n/a"))
_WHOLE = re.compile(r"(\d+)(?:\.0+|,0)")
_ESCAPED = re.compile(r"""="(.*)"|'([=+@-].*)""", re.DOTALL)  # so that a spreadsheet takes it for text
_SEPARATOR = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)  # what Excel writes above a header
_THOUSANDS = re.compile(r"-?[1-9]\d{0,2}(?:,\d{3})+")
_DELIMITERS = ",;\t|"
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_OTHERS = (
    *((b"PK\x03\x04", "a zip archive or a spreadsheet"), (b"\xd0\xcf\x11\xe0", "a spreadsheet")),
    *((b"BZh", "packed by bzip2"), (b"\xfd7zXZ", "packed by xz"), (b"\x28\xb5\x2f\xfd", "packed by zstd")),
)


def read_table(path: str) -> Iterator[Cells]:
    """Rows of a table, streamed; a brace at its beginning makes it JSON lines, a bracket a JSON list (read at once).

    The delimiter of a CSV is told by its header: comma, semicolon, tab or bar. Bytes that are no UTF-8 are read as
    Windows text. Raises ValueError for a file that is no table, is cut or damaged, or has a row that cannot be meant.
    """
    with sources.open_file(path) as raw:
        head = raw.read(HEAD)
        raw.seek(0)
        if head.startswith(b"\x1f\x8b"):
            raw = cast(BinaryIO, gzip.GzipFile(fileobj=raw))
            head = _unpacked(path, raw, HEAD)
            raw.seek(0)
        if fault := no_data(head):
            raise ValueError(f"{path} is no table: {fault}")
        if other := next((name for magic, name in _OTHERS if head.startswith(magic)), ""):
            raise ValueError(f"{path} is {other}: save the table as CSV")
        if head.startswith(b"PAR1"):
            rows = _parquet(path, raw)
        else:
            encoding = "utf-16" if head.startswith(_UTF16) else "utf-8-sig"
            if b"\0" in head and encoding != "utf-16":
                raise ValueError(f"{path} is no table: it is not text")
            lines = _lines(path, io.TextIOWrapper(raw, encoding=encoding, errors=_AS_WINDOWS, newline=""))
            opened = re.match(rb"(?:\xef\xbb\xbf)?\s*([{\[])", head)
            read = {None: _csv, b"{": _json_lines, b"[": _json_list}[opened and opened[1]]
            rows = read(path, lines)
        for row in rows:
            yield cells(row)


def cells(row: Mapping[Any, Any]) -> Cells:
    """A row whose missing values (null, NaN, "None", ...) are empty strings."""
    return {" ".join(str(name).split()): _present(value) for name, value in row.items()}


def columns_of(path: str) -> list[str]:
    """Names of a table's columns. Rows of a CSV have the same; JSON lines may leave some out, so many are read."""
    return list(dict.fromkeys(key for row in islice(read_table(path), 1000) for key in row))


def require(path: str, row: Cells, *columns: str) -> None:
    """Raise a ValueError that names the columns a row lacks, and those it has."""
    if missing := [column for column in columns if column not in row]:
        raise ValueError(f"{path} has no column {', '.join(missing)}; it has {', '.join(row)}")


def text(value: Any) -> str:
    """A cell as text without blanks around it; a whole number without the ".0" that it has beside missing ones."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).encode("utf-8", "replace").decode().strip()


def identifier(value: Any, letter: str = "") -> str:
    """A cell as an id: "50414267.0" and, with `letter` "s", "s50414267" are 50414267; "007" and "a.0" stay."""
    name = text(value)
    whole = _WHOLE.fullmatch(name)
    name = whole[1] if whole else name
    return name[1:] if letter and name[:1].lower() == letter and name[1:].isdigit() else name


def number(value: Any) -> float:
    """A cell as a number, its comma that of a decimal. Raises ValueError for one that is none, or has thousands."""
    digits = str(value).strip()
    return float(digits if _THOUSANDS.fullmatch(digits) else digits.replace(",", "."))


def decode(data: bytes) -> str:
    """Text of a file: UTF-16 with its mark, else UTF-8, whose undecodable bytes are read as Windows text."""
    return data.decode("utf-16" if data.startswith(_UTF16) else "utf-8-sig", _AS_WINDOWS)


def read_json(path: str) -> Any:
    """What a JSON file holds. Raises ValueError naming the file and what is wrong with it."""
    with sources.open_file(path) as stream:
        data = stream.read()
    if fault := no_data(data[:HEAD]):
        raise ValueError(f"{path} is not JSON: {fault}")
    return _parsed(path, decode(data))


def _present(value: Any) -> Any:
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if not isinstance(value, str):
        return value
    if escaped := _ESCAPED.fullmatch(value.strip()):
        value = escaped[1] if escaped[2] is None else escaped[2]
    return "" if value.strip().lower() in _MISSING else value


def _unpacked(path: str, packed: BinaryIO, size: int) -> bytes:
    try:
        return packed.read(size)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} is cut or damaged: its packed content cannot be read") from error


def _lines(path: str, stream: io.TextIOWrapper) -> Iterator[str]:
    while True:
        try:
            line = stream.readline(LONGEST_LINE)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} is cut or damaged: its packed content cannot be read") from error
        except UnicodeError as error:
            raise ValueError(f"{path} is no table: it is not text") from error
        if len(line) == LONGEST_LINE:
            raise ValueError(f"{path} has a line of more than {LONGEST_LINE} characters")
        if not line:
            return
        yield line


def _csv(path: str, lines: Iterator[str]) -> Iterator[Cells]:
    header = next((line for line in lines if line.strip()), "")
    separator = _SEPARATOR.fullmatch(header)
    header = next((line for line in lines if line.strip()), "") if separator else header
    bare = re.sub(r'"[^"]*"', "", header)
    delimiter = separator[1] if separator else max(_DELIMITERS, key=bare.count)
    # Strict, because a quote that is not closed would otherwise swallow the rows behind it.
    reader = csv.reader(_chained(header, lines), delimiter=delimiter, strict=True)
    try:
        names = [" ".join(name.split()) for name in next(reader, [])]
        if twice := next((name for name in names if name and names.count(name) > 1), ""):
            raise ValueError(f"{path} has two columns {twice}")
        for row in reader:
            if any(cell.strip() for cell in row[len(names) :]):
                raise ValueError(
                    f"{path}, line {reader.line_num}: {len(row)} cells under {len(names)} columns; "
                    f"put text that has a {delimiter!r} in it between quotes"
                )
            if any(row):
                yield dict(zip(names, [*row, *[""] * (len(names) - len(row))], strict=False))
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: a quote is not closed or not doubled ({error})") from None


def _chained(first: str, rest: Iterable[str]) -> Iterator[str]:
    yield first
    yield from rest


def _json_lines(path: str, lines: Iterator[str]) -> Iterator[Cells]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        row = _parsed(place, line)
        if not isinstance(row, dict):
            raise ValueError(f"{place}: a JSON object is needed")
        yield row


def _json_list(path: str, lines: Iterator[str]) -> Iterator[Cells]:
    parts, size = [], 0
    for line in lines:
        size += len(line)
        if size > LONGEST_LIST:
            raise ValueError(f"{path} is a JSON list of more than {LONGEST_LIST} characters; write it as JSON lines")
        parts.append(line)
    for number, row in enumerate(_parsed(path, "".join(parts)), start=1):
        if not isinstance(row, dict):
            raise ValueError(f"{path}, entry {number}: a JSON object is needed")
        yield row


def _parsed(place: str, content: str) -> Any:
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: not JSON ({error.msg})") from None
    except (ValueError, RecursionError):  # a number of thousands of digits, thousands of brackets
        raise ValueError(f"{place}: not JSON that can be read (a number or a nesting without end)") from None


def _parquet(path: str, stream: BinaryIO) -> Iterator[Cells]:
    try:
        for batch in pq.ParquetFile(io.BytesIO(stream.read())).iter_batches():
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{path} is cut or damaged: it is no readable parquet file") from error


def _windows(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return error.object[error.start : error.end].decode("cp1252", "replace"), error.end


_AS_WINDOWS = "as-windows-text"
codecs.register_error(_AS_WINDOWS, cast(Callable[[UnicodeError], tuple[str, int]], _windows))
