"""Normalize labels, so that labels that look the same are one class."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable

# Zero-width space, word joiner, byte-order mark, soft hyphen. Joiners (U+200C, U+200D) are kept for scripts and emoji.
INVISIBLE = re.compile("[\u200b\u2060\ufeff\u00ad]")
QUOTES = ('""', "''", "“”", "„“", "‘’", "«»", "``")
SPACES = re.compile(r"[^\S\n\r\t\v\f\x1c-\x1f\x85\u2028\u2029]+")  # all whitespace except control characters


def normalize_label(label: str) -> str:
    """Return a label in NFC, without invisible characters and without spaces and quotes around it.

    macOS and Linux store `café` in two Unicode forms that look alike. Labels that differ in case stay different.
    """
    text = SPACES.sub(" ", INVISIBLE.sub("", unicodedata.normalize("NFC", label))).strip()
    while len(text) > 1 and text[0] + text[-1] in QUOTES:
        text = text[1:-1].strip()
    return text


def labels_differing_in_case(labels: Iterable[str]) -> list[list[str]]:
    """Return the groups of labels that differ only in case."""
    groups: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        groups[label.casefold()].append(label)
    return [group for group in groups.values() if len(group) > 1]
