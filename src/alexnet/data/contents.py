"""Image files inside other files: Parquet files and tar archives."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


class Container(Protocol):
    """A file that contains images; their bytes are read from disk when needed."""

    path: Path

    def read(self, place: Any) -> bytes:
        """Return the bytes of the image at a place, empty for a missing value."""

    def close(self) -> None:
        """Close the file, and free the images in memory."""


@dataclass(eq=False)
class Contents:
    """Image files inside others: the file and the place of each, by name; one file is open at a time."""

    places: dict[str, tuple[Container, Any]]
    _current: Container | None = None

    def __getitem__(self, name: str) -> bytes:
        """Return the bytes of an image, empty for a missing value."""
        container, place = self.places[name]
        if self._current is not None and self._current is not container:
            self._current.close()
        self._current = container
        return container.read(place)

    def path(self, name: str) -> Path:
        """Return the file that contains an image."""
        return self.places[name][0].path
