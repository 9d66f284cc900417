"""One spelling for a label: what looks the same is the same class."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable

# Zero-width space, word joiner, byte-order mark, soft hyphen. Joiners (U+200C, U+200D) stay: scripts and emoji need them.
INVISIBLE = re.compile("[\u200b\u2060\ufeff\u00ad]")
QUOTES = ('""', "''", "“”", "„“", "‘’", "«»", "``")
STEERING = re.compile(r"[^\S\n\r\t\v\f\x1c-\x1f\x85\u2028\u2029]+")  # blanks of all kinds, but for control characters


def normalize_label(label: str) -> str:
    """Return a label as classes are told apart: composed (NFC), without invisible characters, outer blanks and outer quotes.

    macOS, Linux and archive programs store `café` in two forms that look alike; upper and lower case stay two labels.
    """
    text = STEERING.sub(" ", INVISIBLE.sub("", unicodedata.normalize("NFC", label))).strip()
    while len(text) > 1 and text[0] + text[-1] in QUOTES:
        text = text[1:-1].strip()
    return text


def labels_differing_in_case(labels: Iterable[str]) -> list[list[str]]:
    """Return the groups of labels that are one but for upper and lower case."""
    groups: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        groups[label.casefold()].append(label)
    return [group for group in groups.values() if len(group) > 1]
