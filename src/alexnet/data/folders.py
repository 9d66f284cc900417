"""A folder of images -> rows: which folders are classes, which are splits, and which are neither.

What folders hold decides, and then their names: a folder called `train` is a split if it holds class folders, and a class if it
holds images beside other folders of images.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from alexnet.data.decode import opened
from alexnet.data.names import LABEL, no_classes, split_of_folder
from alexnet.data.scan import visible
from alexnet.data.table import Row, Skipped
from alexnet.errors import DataError, format_names
from alexnet.files import made_here

PICTURES = re.compile(r"(jpeg)?(images?|imgs?)", re.IGNORECASE)
MASKS = re.compile(r"masks?|labels?|annotations?|segmentation.*|ground.?truth|gt", re.IGNORECASE)
# Names of folders that may be parts of a dataset, if there are class folders in them: `fold1`; `mytrain`, `te`.
LIKE_SPLITS = re.compile(r"train|trein|test|val|тест|обуч|\b(tr|te)\b", re.IGNORECASE)
PARTS = re.compile(r"(fold|part|batch|chunk|split)[\s._-]*\d+", re.IGNORECASE)

# Names of images, those that are not read too: a class of them is to be told of, not passed over.
IMAGE_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"),
        *(".pnm", ".jp2", ".j2k", ".jpx", ".avif", ".heic", ".heif", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf"),
    )
)
SNIFFED = 20  # files of a folder, none of which has such a name, whose content is looked at
# Folders of archive programs, systems and Python.
DEBRIS = {
    *("__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found", "__pycache__"),
}
# What this program leaves: files of a run, an index, a study; pictures of `explain`, a curve of `--find-lr`.
MARKS = ("recipe.toml", "model.json", "search.json", "study.json")
OUR_PICTURES = re.compile(r".+-explained\.png|filters\.png|ablation\.png|.+-rate\.png")
MADE = "made by alexnet: no images to learn from"


@dataclass(frozen=True, eq=False)
class Folder:
    """What a folder holds: its own `files`, the `folders` with images in them, and what is `passed_over`, with the reason."""

    path: Path
    files: list[Path]
    folders: list[Folder] = field(default_factory=list)
    passed_over: list[tuple[Path, str]] = field(default_factory=list)

    @cached_property
    def images(self) -> bool:
        """Whether there are images among its own files."""
        return any(file.suffix.lower() in IMAGE_SUFFIXES for file in self.files) or any(map(_opens, self.files[:SNIFFED]))

    @cached_property
    def splits(self) -> dict[Path, str]:
        """The folders in it that are splits, each with the split; none where all are classes.

        Raises:
            DataError: it cannot be known.
        """
        return _splits(self)

    @property
    def divided(self) -> bool:
        """Whether it holds images in folders alone."""
        return bool(self.folders) and not self.images

    def everything(self) -> list[Path]:
        """Return all files in it and below, sorted; a folder that is linked twice counts once."""
        seen: set[str] = set()

        def walk(folder: Folder) -> Iterator[Path]:
            real = os.path.realpath(folder.path)
            if real not in seen:
                seen.add(real)
                yield from folder.files
                for inner in folder.folders:
                    yield from walk(inner)

        return sorted(walk(self))

    def skipped(self, root: Path) -> list[Skipped]:
        """Return what is passed over in it and below."""
        result = [Skipped(path.relative_to(root).as_posix(), reason) for path, reason in self.passed_over]
        return result + [skipped for inner in self.folders for skipped in inner.skipped(root)]


def read_folder(root: Path) -> tuple[list[Row], list[Skipped]]:
    """Return a row for each image in the folder, and what is passed over.

    Raises:
        DataError: it cannot be known whether folders are splits or classes, or which split.
        OSError: a folder cannot be read.
    """
    here = _look(root, ())
    if here.splits:
        return _read_splits(root, here)
    if not here.divided:
        return _read_classes(root, here, "")
    if len(here.folders) == 1 and here.folders[0].splits:
        rows, skipped = _read_splits(root, here.folders[0])  # photos/data/train/cat
        strays = [Skipped(file.name, "not in a split's folder") for file in here.files]
        return rows, [*strays, *Folder(root, [], [], here.passed_over).skipped(root), *skipped]
    _refuse_parts(here)
    return _read_classes(root, here, "")


def _refuse_parts(here: Folder) -> None:
    """Refuse folders that look like whole datasets or like parts of one, and so may be no classes."""
    names = [folder.path.name for folder in here.folders]
    for folder in here.folders:
        if any(inner.divided and inner.path in folder.splits for inner in folder.folders):
            others = format_names(name for name in names if name != folder.path.name)
            raise DataError(
                f"{here.path} has {folder.path.name!r}, a dataset with splits of its own, beside {others}: "
                f"give {folder.path}, or put it elsewhere"
            )
    alike = len({frozenset(inner.path.name for inner in folder.folders) for folder in here.folders}) == 1
    parts = all(map(PARTS.fullmatch, names)) or (alike and any(map(LIKE_SPLITS.search, names)))
    if len(names) > 1 and parts and all(folder.divided for folder in here.folders):
        raise DataError(
            f"{here.path} has {format_names(names)}, which may be parts of one dataset or classes: "
            "join the class folders in them, or give them other names"
        )


def _look(path: Path, above: tuple[str, ...]) -> Folder:
    """Return what a folder holds; a link that leads back up is not followed."""
    folders, files = visible(path)
    ours = {file for file in files if OUR_PICTURES.fullmatch(file.name) and made_here(file)}
    here = Folder(path, [file for file in files if file not in ours], [], [(file, MADE) for file in sorted(ours)])
    above = (*above, os.path.realpath(path))
    for inner in folders:
        if inner.name.lower() in DEBRIS:
            here.passed_over.append((inner, "a folder that archive programs and systems leave"))
        elif os.path.realpath(inner) not in above:
            result = _look(inner, above)
            if reason := _no_images(result):
                here.passed_over.append((inner, reason))
            else:
                here.folders.append(result)
    if any(PICTURES.fullmatch(inner.path.name) for inner in here.folders):
        masks = [inner for inner in here.folders if MASKS.fullmatch(inner.path.name)]
        here.passed_over.extend((inner.path, "masks of the images beside it, by its name") for inner in masks)
        here.folders[:] = [inner for inner in here.folders if inner not in masks]
    return here


def _no_images(folder: Folder) -> str:
    """Return why a folder is neither a class nor a split; nothing if it may be one."""
    pictures = [file for file in folder.files if file.suffix.lower() in IMAGE_SUFFIXES]
    ours = pictures or any((folder.path / mark).is_file() for mark in MARKS)
    if ours and not folder.folders and all(map(_our_picture, pictures)):
        return MADE
    if folder.folders or folder.images:
        return ""
    if any(reason == MADE for _, reason in folder.passed_over):  # `runs`
        return MADE
    return "no images in it" if folder.files or folder.passed_over else "class folder without files"


def _picture(file: Path) -> bool:
    return file.suffix.lower() in IMAGE_SUFFIXES or _opens(file)


def _our_picture(file: Path) -> bool:
    return bool(OUR_PICTURES.fullmatch(file.name)) or made_here(file)


def _opens(file: Path) -> bool:
    """Whether a file's content is an image's, whatever its name."""
    try:
        with opened(file):
            return True
    except Exception:  # Pillow's readers raise a dozen kinds
        return False


def _splits(here: Folder) -> dict[Path, str]:
    """Return the folders in `here` that are splits, each with the split; none where all are classes.

    Raises:
        DataError: it cannot be known.
    """
    said = {folder: split_of_folder(folder.path.name) for folder in here.folders}
    beside = [words for split, words in said.values() if split]
    named = {f: split for f, (split, words) in said.items() if split and (not words or beside.count(words) > 1)}
    others = [folder for folder in here.folders if folder not in named]
    if not named or not (_hold_classes(list(named), others) or ("train" in named.values() and not others)):
        return {}
    for split in sorted(set(named.values())):
        if len(same := [folder.path.name for folder, its in named.items() if its == split]) > 1:
            raise DataError(f"{here.path} has {format_names(same)}, of which each could be {split}: put one of them elsewhere")
    whole = "train" in named.values() and len(named) > 1
    if not whole and (alike := [folder.path.name for folder in others if folder.divided]):
        name = next(iter(named)).path.name
        raise DataError(
            f"{here.path} has {name!r} and {format_names(alike)}, all with folders in them, which may be splits or classes: "
            f"for splits, name them train, val and test, or put the others elsewhere; for classes, give {name!r} another name"
        )
    return {folder.path: split for folder, split in named.items()}


def _hold_classes(named: list[Folder], others: list[Folder]) -> bool:
    """Whether folders with the names of splits hold classes: as folders, or as labels in their files' names."""
    if any(folder.divided for folder in named):
        return True
    inner = [{folder.path.name for folder in each.folders} for each in named]
    if len(inner) > 1 and set.intersection(*inner):  # with a stray image beside the class folders
        return True
    labels = [_labels_in_names(folder) for folder in named]
    shared = set.intersection(*labels)
    return len(named) > 1 and len(shared) > 1 and not any(shared <= _labels_in_names(folder) for folder in others)


def _labels_in_names(folder: Folder) -> set[str]:
    return {match["label"] for file in folder.files if (match := LABEL.match(file.stem))}


def _read_splits(root: Path, here: Folder) -> tuple[list[Row], list[Skipped]]:
    splits = here.splits
    skipped = [Skipped(file.relative_to(root).as_posix(), "not in a split's folder") for file in here.files]
    skipped += Folder(here.path, [], [], here.passed_over).skipped(root)
    inside = {folder.path: _unwrapped(folder) for folder in here.folders if folder.path in splits}
    skipped += [
        Skipped(folder.path.relative_to(root).as_posix(), "not a split's folder, as those beside it are")
        for folder in here.folders
        if folder.path not in splits
    ]
    in_folders = any(folder.folders for folder in inside.values())
    rows: list[Row] = []
    for path, folder in inside.items():
        inner, left_out = _read_classes(root, folder, splits[path], in_names=not in_folders)
        rows += inner
        skipped += left_out
    if {row.split for row in rows} == {"train"}:  # alone, or beside a test folder without labels: not split yet
        rows = [row._replace(split="") for row in rows]
    return rows, skipped


def _unwrapped(folder: Folder) -> Folder:
    """Return the folder that holds the classes: of `train/train/cat` and `train/train/cat.17.jpg` the inner one."""
    if folder.divided and len(folder.folders) == 1:
        only = folder.folders[0]
        if split_of_folder(only.path.name)[0] == split_of_folder(folder.path.name)[0]:
            return _unwrapped(only)
    return folder


def _read_classes(root: Path, here: Folder, split: str, *, in_names: bool = True) -> tuple[list[Row], list[Skipped]]:
    """Read class folders where there are folders, else, if `in_names`, labels from file names."""
    named: list[Row] = []
    skipped = here.skipped(root)
    for file in here.files:
        name = file.relative_to(root).as_posix()
        if here.folders or not in_names:
            skipped.append(Skipped(name, "not in a class folder"))
        elif file.suffix.lower() == ".png" and made_here(file):
            skipped.append(Skipped(name, MADE))
        elif not _picture(file):
            skipped.append(Skipped(name, "not an image"))
        elif match := LABEL.match(file.stem):
            named.append(Row(name, match["label"], split))
        else:
            skipped.append(Skipped(name, "no label in the file's name"))
    if reason := no_classes(row.label for row in named):
        skipped += [Skipped(row.image, reason) for row in named]
    rows = [] if reason else named
    splits = {} if split else _splits_inside(here)
    for folder in here.folders:
        for file in folder.everything():
            path = file.relative_to(folder.path).parts[0]
            rows.append(Row(file.relative_to(root).as_posix(), folder.path.name, splits.get(path, split)))
    return rows, skipped


def _splits_inside(here: Folder) -> dict[str, str]:
    """Return the folders in class folders that are splits, by name, if all are, as in `cat/train`, `cat/val`, `dog/train`."""
    inside = {inner.path.name: split_of_folder(inner.path.name) for folder in here.folders for inner in folder.folders}
    splits = {name: split for name, (split, beside) in inside.items() if not beside}
    whole = splits.keys() == inside.keys() and "train" in splits.values() and len(set(splits.values())) == len(splits) > 1
    return splits if whole and "" not in splits.values() and not any(folder.images for folder in here.folders) else {}
