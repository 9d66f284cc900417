"""Exceptions, and helpers that format their messages.

A message is one line: what is wrong, its value, and how to fix it. The command line prints the line and exits with 1. All
exceptions derive from `AlexNetError`.
"""

import difflib
import re
import shlex
from collections.abc import Iterable

# Control characters, and bidirectional ones, which can make one name look like another.
UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
LONGEST_NAME = 80  # characters of a name in a message
NAMES_SHOWN = 10  # in a list of names


class AlexNetError(Exception):
    """Base class of all errors that a user can fix; the message is one line that says how."""


class DataError(AlexNetError):
    """A dataset cannot be used: not found, only one class, labels that differ between splits, a failed download."""


class ImageError(AlexNetError):
    """A file cannot be decoded to an image; `message` is the reason, without the file's name.

    `kind` is one of `missing`, `empty`, `not an image`, `format`, `truncated`, `corrupt`, `huge`, `slow`.
    """

    def __init__(self, message: str, kind: str = "corrupt") -> None:
        super().__init__(message)
        self.kind = kind


class RecipeError(AlexNetError):
    """A recipe or a `--set` option cannot be used: unknown key, wrong type, value out of range."""


class VariantError(AlexNetError):
    """A network cannot be built or run: unknown variant, input too small for its pooling layers."""


class WeightsError(AlexNetError):
    """A weights file cannot be used: damaged, in another format, or made for another network."""


class RunError(AlexNetError):
    """A run folder is missing, damaged, in use, or not writable."""


class DivergedError(AlexNetError):
    """The training loss is not finite."""


class Interrupted(AlexNetError):
    """A signal stopped training, which saved its state first.

    `message` says how to resume; `code` is the exit code that the shell expects: 130 after Ctrl-C, 143 after SIGTERM.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def error_reason(error: Exception) -> str:
    """Return the operating system's message for an `OSError`, else the exception's own."""
    return getattr(error, "strerror", None) or str(error)


def shell_quote(path: object) -> str:
    """Return a path quoted for a shell, so that a command can be copied."""
    return shlex.quote(str(path))


def printable(text: str) -> str:
    r"""Return `text` with control and bidirectional characters escaped, as \x1b or \u202e.

    File names and labels are untrusted: escaped, they cannot control the terminal or break a message into several lines.
    """
    return UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def truncate(text: object, most: int = LONGEST_NAME) -> str:
    """Shorten `text` to `most` characters by cutting out its middle."""
    whole = str(text)
    end = (most - 1) // 2
    return whole if len(whole) <= most else f"{whole[: most - 1 - end]}…{whole[-end:]}"


def format_names(names: Iterable[object], most: int = NAMES_SHOWN) -> str:
    """Return the first `most` names, each shortened, and the number of the others: `'a', 'b' and 1,298 more`."""
    names = list(names)
    shown = ", ".join(repr(truncate(name)) for name in names[:most])
    return f"{shown} and {len(names) - most:,} more" if len(names) > most else shown


def counted(number: float, noun: str) -> str:
    """Return a number with its noun: `1 image`, `1,298 images`, `2.5 minutes`, `0 classes`."""
    plural = "es" if noun.endswith(("s", "x", "tch")) else "s"
    return f"{number:{'g' if isinstance(number, float) else ','}} {noun}{'' if number == 1 else plural}"


def suggest(word: str, known: Iterable[str]) -> str:
    """Return `did you mean 'x'?` with the known word closest to `word`, or the list of known words if none is close."""
    known = sorted(known)
    close = difflib.get_close_matches(word[:LONGEST_NAME], known, n=1, cutoff=0.6)
    return f"did you mean {truncate(close[0])!r}?" if close else f"use one of: {', '.join(map(truncate, known))}"
