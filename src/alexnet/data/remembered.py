"""Lists that take long to make, such as what is in an archive, kept in the user's cache."""

import hashlib
import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from alexnet.errors import AlexNetError
from alexnet.files import user_cache, write_text


def remembered(facts: Iterable[str], make: Callable[[], Iterable[tuple[Any, ...]]]) -> list[list[Any]]:
    """Return the rows that `make` yields, of text and numbers; from the cache if they were made before from the same facts.

    If `make` raises an exception, nothing is kept.
    """
    digest = hashlib.sha256("\0".join(("1", *facts)).encode("utf-8", "surrogateescape")).hexdigest()
    kept = user_cache() / "listings" / f"{digest[:32]}.json"
    with suppress(OSError, ValueError):
        expected, _, text = kept.read_text(encoding="utf-8").partition("\n")
        if hashlib.sha256(text.encode()).hexdigest() == expected:
            return list(json.loads(text))
    rows = [list(row) for row in make()]
    with suppress(OSError, AlexNetError):  # it is made again next time
        kept.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(rows)
        write_text(kept, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")
    return rows
