"""Image files inside other files: Parquet files and tar archives."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


def stat_fact(stat: os.stat_result) -> str:
    """Return what changes when a file does: its size and its time of change."""
    return f"{stat.st_size}\0{stat.st_mtime_ns}"


class Container(Protocol):
    """A file that contains images; their bytes are read when needed."""

    @property
    def path(self) -> Path:
        """The path of the file, or its URL."""

    def read(self, place: Any) -> bytes:
        """Return the bytes of the image at a place, empty for a missing value."""

    def fact(self) -> str:
        """Return what changes when the file does, such as its size and its time of change."""


@dataclass(frozen=True, eq=False)
class Contents:
    """Image files inside others: the file and the place of each, by name."""

    places: dict[str, tuple[Container, Any]]

    def __getitem__(self, name: str) -> bytes:
        """Return the bytes of an image, empty for a missing value."""
        container, place = self.places[name]
        return container.read(place)

    def path(self, name: str) -> Path:
        """Return the path of the file that contains an image, or its URL."""
        return self.places[name][0].path

    def fact(self, name: str) -> str:
        """Return what changes when the image does, as far as the file that contains it says."""
        container, place = self.places[name]
        return f"{container.fact()}\0{place}"
