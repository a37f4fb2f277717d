"""Halves of characters: what JSON, command lines and file names may hold, and UTF-8 may not."""

import re

HALVES = re.compile("[\ud800-\udfff]")


def whole(text: str) -> str:
    """The text with U+FFFD in the place of each half."""
    return HALVES.sub("\ufffd", text)
