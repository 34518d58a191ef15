"""What a file that should hold data is instead, told by its first bytes: what downloads and copies leave behind."""

import re

HEAD = 512
"""Bytes from a file's beginning that tell what it is."""

_NO_DATA = (
    (re.compile(rb"\Z"), "it is empty"),
    (re.compile(rb"version https://git-lfs"), "it is a Git LFS pointer, not the file: fetch that with `git lfs pull`"),
    (
        re.compile(rb"(?:\xef\xbb\xbf)?\s*<[!?a-z]", re.IGNORECASE),
        "it is a web page, not the file: the download asked for a login or a confirmation",
    ),
)


def no_data(head: bytes) -> str:
    """What a file that begins like this is instead of data, in words; empty where nothing speaks against it."""
    return next((said for pattern, said in _NO_DATA if pattern.match(head)), "")
