"""What a user can get wrong, each with one readable line.

Every message names the thing that is wrong, the value it has, and the way out. The command line prints the line and exits
with 1; in Python these are ordinary exceptions. All derive from `AlexNetError`.
"""

from __future__ import annotations

import difflib
import shlex
import unicodedata
from collections.abc import Iterable

DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # they let a name read as another one
LONGEST_NAME = 80  # characters of a name in a message
NAMES_SHOWN = 10  # in a list of names


class AlexNetError(Exception):
    """Something the user can mend; the message is one line that says how."""


class DataError(AlexNetError):
    """A dataset that cannot be used: not found, one class, labels that differ between splits, a download that failed."""


class ImageError(AlexNetError):
    """A file that does not decode to an image; `message` is the reason, without the file's name.

    `kind` is one of `missing`, `empty`, `not an image`, `format`, `truncated`, `corrupt`, `huge`, `slow`.
    """

    def __init__(self, message: str, kind: str = "corrupt") -> None:
        super().__init__(message)
        self.kind = kind


class RecipeError(AlexNetError):
    """A recipe or a `--set` that cannot be used: unknown key, wrong type, value out of range."""


class VariantError(AlexNetError):
    """An architecture that cannot be built or fed: unknown name, input too small for its pools."""


class WeightsError(AlexNetError):
    """A file of weights that cannot be used: damaged, of another kind, or made for another network."""


class RunError(AlexNetError):
    """A run folder that is missing, damaged, occupied or cannot be written."""


class DivergedError(AlexNetError):
    """Training reached a loss that is not finite."""


class Interrupted(AlexNetError):
    """Training was stopped by a signal and saved.

    `message` says how to go on; `code` is the exit code that the shell expects: 130 after Ctrl-C, 143 after SIGTERM.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def error_reason(error: Exception) -> str:
    """Return why something failed: what the system says, where it was the system, else the exception's own words."""
    return getattr(error, "strerror", None) or str(error)


def shell_quote(path: object) -> str:
    """Return a path as a shell takes it, for a command to copy."""
    return shlex.quote(str(path))


def printable(text: str) -> str:
    r"""Return `text` with characters that would steer a terminal, control and direction, as \x1b or \u202e.

    Names of files and labels are other people's; a newline among them stays one line.
    """

    def steers(char: str) -> bool:
        return unicodedata.category(char) == "Cc" or char in DIRECTIONS

    return "".join(char.encode("unicode_escape").decode() if steers(char) else char for char in text)


def truncate(text: object, most: int = LONGEST_NAME) -> str:
    """Return `text` as a message shows it: without its middle where it is longer than `most` characters."""
    whole = str(text)
    end = (most - 1) // 2
    return whole if len(whole) <= most else f"{whole[: most - 1 - end]}…{whole[-end:]}"


def format_names(names: Iterable[object], most: int = NAMES_SHOWN) -> str:
    """Return `'a', 'b' and 1,298 more` for a message: the first `most` names, each shortened, and how many more there are."""
    names = list(names)
    shown = ", ".join(repr(truncate(name)) for name in names[:most])
    return f"{shown} and {len(names) - most:,} more" if len(names) > most else shown


def suggest(word: str, known: Iterable[str]) -> str:
    """Return `did you mean 'x'?` for the known word closest to `word`, else the list of known words."""
    known = sorted(known)
    close = difflib.get_close_matches(word[:LONGEST_NAME], known, n=1, cutoff=0.6)
    return f"did you mean {truncate(close[0])!r}?" if close else f"known are: {', '.join(map(truncate, known))}"
