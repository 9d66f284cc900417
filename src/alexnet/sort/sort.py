"""Put images into a folder for each label: copy, move or link them, never over a file, and take it all back.

Each step leaves an image in at least one place, and a step that a kill interrupted is finished by the next call.
"""

import filecmp
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from pathvalidate import sanitize_filename

from alexnet.data.decode_pool import Source
from alexnet.errors import DataError, RunError, error_reason
from alexnet.files import writing
from alexnet.sort.journal import NAME, Entry, How, Journal, create, read

UNSURE = "unsure"  # folder of images that seem to show none of the classes; `unsure-2` if that is a label
BATCH = 128  # images written to the journal at once


def open_folder(folder: Path, how: How) -> Journal:
    """Open a folder of sorted images, new or to be continued, and finish what a kill interrupted."""
    folder = folder.absolute()
    if not (folder / NAME).exists():
        return create(folder, how)
    journal = read(folder)
    if journal.how != how:
        did = {"copy": "copied", "move": "moved", "link": "linked"}[journal.how]
        raise RunError(f"the images in {folder} were {did}: go on in the same way, or name another folder")
    for entry in journal.pending:
        _place(entry, how)
    journal.finish()
    return journal


def unsorted(journal: Journal, sources: Iterable[Source]) -> list[Path]:
    """Return the sources that are not sorted yet; all must be files outside the folder."""
    known = {entry.image: entry for entry in journal.entries}
    result: list[Path] = []
    for source in sources:
        if not isinstance(source, Path):
            raise DataError("only files can be sorted: give paths, folders or patterns")
        if (path := _absolute(source)).is_relative_to(journal.folder.resolve()):
            raise DataError(f"{source} is in the folder to sort into, {journal.folder}: name the images elsewhere")
        if journal.how == "move" and source.is_symlink():
            raise DataError(f"{source} is a symbolic link, which would not work elsewhere: leave out --move, or name its file")
        if not ((entry := known.get(path)) and entry.is_current):
            result.append(source)
    return result


def sort(journal: Journal, results: Iterable[dict[str, Any]], labels: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Put the image of each result of `predict` into the folder of its label; yield the result with `"sorted"`, its new path.

    An image that is not known goes into the folder `unsure`. One that cannot be read stays where it is.
    """
    *names, unsure = folder_names([*labels, UNSURE])
    folders = dict(zip(labels, names, strict=True))
    taken: set[str] = set()  # targets of the batch, in the journal but not written yet
    results = iter(results)
    while batch := list(islice(results, BATCH)):
        entries = {}
        for number, result in enumerate(batch):
            try:
                if "error" not in result:
                    folder = folders[result["predictions"][0]["label"]] if result.get("known", True) else unsure
                    entries[number] = _entry(journal.folder / folder, _absolute(Path(result["image"])), taken)
            except OSError as error:  # removed since it was read
                batch[number] = {"image": result["image"], "error": error_reason(error)}
        journal.add([*entries.values()])
        for number, result in enumerate(batch):
            if number in entries:
                _place(entries[number], journal.how)
                result = result | {"sorted": str(entries[number].target)}
            yield result
        journal.finish()
        taken.clear()


def undo_sort(folder: str | Path) -> dict[str, Any]:
    """Take back what `Run.sort` put into a folder: copies and links are removed, moved images return to their place.

    What has changed since is kept, and files that others put there are not touched.

    Returns:
        `{"folder", "undone", "kept": [{"image", "reason"}]}`: `undone` is the number of images.

    Raises:
        RunError: `folder` has no sorted images, or cannot be written.
    """
    journal = read(Path(folder).absolute())
    take_back = {"copy": _remove_copy, "move": _move_back, "link": _remove_link}[journal.how]
    reasons = {entry: reason for entry in reversed(journal.entries) if (reason := take_back(entry))}
    kept = [entry for entry in journal.entries if entry in reasons]
    undone = len(journal.entries) - len(kept)
    for parent in {entry.target.parent for entry in journal.entries}:
        with suppress(OSError):  # not empty
            parent.rmdir()
    if kept:
        journal.replace(kept)
    else:
        journal.path.unlink()
        with suppress(OSError):  # not empty
            if journal.created:
                journal.folder.rmdir()
    problems = [{"image": str(entry.target), "reason": reasons[entry]} for entry in kept]
    return {"folder": str(folder), "undone": undone, "kept": problems}


def folder_names(labels: Sequence[str]) -> list[str]:
    """Return a folder name for each label, valid on every system and different even where case does not count."""
    names: list[str] = []
    used: set[str] = set()
    for label in labels:
        name = str(sanitize_filename(label, "_", platform="universal", max_len=100)).lstrip(".") or "_"
        names.append(_unused(name, used))
        used.add(names[-1].casefold())
    return names


def _unused(name: str, used: set[str]) -> str:
    numbered = (name, *(f"{name}-{number}" for number in range(2, len(used) + 3)))
    return next(name for name in numbered if name.casefold() not in used)


def _absolute(path: Path) -> Path:
    """Return an absolute path without `..`, whose last part may be a link."""
    return path.parent.resolve() / path.name


def _entry(folder: Path, image: Path, taken: set[str]) -> Entry:
    """Return the entry of an image that goes into `folder`, under a name that nothing there has."""
    found, number, target = image.stat(), 1, folder / image.name
    while os.path.lexists(target) or str(target).casefold() in taken:
        number += 1
        target = folder / f"{image.stem}-{number}{image.suffix}"
    taken.add(str(target).casefold())
    return Entry(image, target, found.st_size, found.st_mtime_ns)


def _place(entry: Entry, how: How) -> None:
    """Do what the journal says of an image, or the rest of it."""
    image, target = entry.image, entry.target
    with writing(target):
        target.parent.mkdir(exist_ok=True)
        _part(target).unlink(missing_ok=True)
        if how == "link" and not os.path.lexists(target):
            target.symlink_to(image)
        elif how == "copy" and not os.path.lexists(target):
            _copy(image, target)
        elif how == "move" and os.path.lexists(image):
            _move(image, target)


def _copy(image: Path, target: Path) -> None:
    """Copy a file with its times, so that it appears whole or not at all; nothing is replaced."""
    part = _part(target)
    try:
        shutil.copy2(image, part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        _rename_new(part, target)
    finally:
        part.unlink(missing_ok=True)


def _part(target: Path) -> Path:
    """Return the temporary name of a copy, the same in each process, so that a killed one's is replaced or removed."""
    return target.with_name(f".alexnet-{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]}.part")


def _move(image: Path, target: Path) -> None:
    """Move a file, to another disk too, so that it is always whole in one place; if `target` is its copy, finish the move."""
    if not os.path.lexists(target):
        try:
            os.link(image, target, follow_symlinks=False)
        except OSError:  # another disk, or no hard links
            _copy(image, target)
    if not _same(image, target):
        raise FileExistsError(17, f"not the file that was moved there; {image} is left in its place")
    image.unlink()


def _rename_new(part: Path, target: Path) -> None:
    """Rename a file unless there is one of that name."""
    try:
        os.link(part, target)
    except FileExistsError:
        raise
    except OSError:  # no hard links on this file system
        if os.path.lexists(target):
            raise FileExistsError(17, "the file exists") from None
        part.rename(target)


def _same(one: Path, other: Path) -> bool:
    """Return whether two paths are the same file, or files of the same bytes."""
    return os.path.samefile(one, other) or filecmp.cmp(one, other, shallow=False)


def _remove_copy(entry: Entry) -> str:
    _part(entry.target).unlink(missing_ok=True)
    if not os.path.lexists(entry.target):
        return ""
    if entry.target.is_symlink() or not entry.image.is_file() or not _same(entry.image, entry.target):
        return f"it differs from {entry.image}"
    entry.target.unlink()
    return ""


def _remove_link(entry: Entry) -> str:
    if not os.path.lexists(entry.target):
        return ""
    if not entry.target.is_symlink() or os.readlink(entry.target) != str(entry.image):
        return f"it is not a link to {entry.image}"
    entry.target.unlink()
    return ""


def _move_back(entry: Entry) -> str:
    _part(entry.image).unlink(missing_ok=True)
    if not os.path.lexists(entry.target):
        return "" if os.path.lexists(entry.image) else f"it is gone, and so is {entry.image}"
    if os.path.lexists(entry.image) and not _same(entry.image, entry.target):
        return f"there is another file at {entry.image}"
    with writing(entry.image):
        entry.image.parent.mkdir(parents=True, exist_ok=True)
        _move(entry.target, entry.image)
    return ""
