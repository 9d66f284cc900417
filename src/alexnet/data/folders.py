"""Read a folder of images: decide which folders are classes, which are splits, and which are neither.

The content of folders decides first, then their names: a folder `train` is a split if it contains class folders, and a class
if both it and the folders beside it contain images.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from alexnet.data.decode import open_image
from alexnet.data.name_patterns import LABEL, split_of_folder, why_not_labels
from alexnet.data.scan import visible
from alexnet.data.table import Row, Skipped
from alexnet.errors import DataError, format_names
from alexnet.files import made_by_alexnet

PICTURES = re.compile(r"(jpeg)?(images?|imgs?)", re.IGNORECASE)
MASKS = re.compile(r"masks?|labels?|annotations?|segmentation.*|ground.?truth|gt", re.IGNORECASE)
# Names of folders that may be parts of a dataset if they contain class folders: `fold1`; `mytrain`, `te`.
LIKE_SPLITS = re.compile(r"train|trein|test|val|тест|обуч|\b(tr|te)\b", re.IGNORECASE)
PARTS = re.compile(r"(fold|part|batch|chunk|split)[\s._-]*\d+", re.IGNORECASE)

# Suffixes of images, including formats that cannot be read: a class of such files is reported rather than ignored.
IMAGE_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"),
        *(".pnm", ".jp2", ".j2k", ".jpx", ".avif", ".heic", ".heif", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf"),
    )
)
SNIFFED = 20  # files to open in a folder where no name has such a suffix
# Folders that archive programs, operating systems and Python create.
SYSTEM_FOLDERS = {
    *("__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found", "__pycache__"),
}
# Files that alexnet creates: of runs, search indices and studies; figures of `explain` and `--find-lr`.
MARKER_FILES = ("recipe.toml", "model.json", "search.json", "study.json")
OUR_FIGURES = re.compile(r".+-explained\.png|filters\.png|ablation\.png|.+-(lr|rate)\.png")
MADE = "made by alexnet, not a training image"


@dataclass(frozen=True, eq=False)
class Folder:
    """The content of a folder: its `files`, its `folders` that contain images, and what is `ignored`, with the reason."""

    path: Path
    files: list[Path]
    folders: list[Folder] = field(default_factory=list)
    ignored: list[tuple[Path, str]] = field(default_factory=list)

    @cached_property
    def has_images(self) -> bool:
        """Whether there are images among its own files."""
        return any(file.suffix.lower() in IMAGE_SUFFIXES for file in self.files) or any(map(_opens, self.files[:SNIFFED]))

    @cached_property
    def splits(self) -> dict[Path, str]:
        """The inner folders that are splits, with their splits; empty if they are classes."""
        return _splits(self)

    @property
    def images_in_folders(self) -> bool:
        """Whether all images are in inner folders."""
        return bool(self.folders) and not self.has_images

    def all_files(self) -> list[Path]:
        """Return all files in the folder and below, sorted; a folder that is linked twice counts once."""
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
        """Return what is ignored in the folder and below."""
        result = [Skipped(path.relative_to(root).as_posix(), reason) for path, reason in self.ignored]
        return result + [skipped for inner in self.folders for skipped in inner.skipped(root)]


def read_folder(root: Path) -> tuple[list[Row], list[Skipped]]:
    """Return a row for each image in the folder, and the files and folders that are left out."""
    parent = _scan(root, ())
    if parent.splits:
        return _read_splits(root, parent)
    if not parent.images_in_folders:
        return _read_classes(root, parent, "")
    if len(parent.folders) == 1 and parent.folders[0].splits:
        rows, skipped = _read_splits(root, parent.folders[0])  # photos/data/train/cat
        strays = [Skipped(file.name, "not in a split's folder") for file in parent.files]
        return rows, [*strays, *Folder(root, [], [], parent.ignored).skipped(root), *skipped]
    _refuse_parts(parent)
    return _read_classes(root, parent, "")


def _refuse_parts(parent: Folder) -> None:
    """Refuse folders that may be datasets of their own, or parts of one, rather than classes."""
    names = [folder.path.name for folder in parent.folders]
    for folder in parent.folders:
        if any(inner.images_in_folders and inner.path in folder.splits for inner in folder.folders):
            others = format_names(name for name in names if name != folder.path.name)
            raise DataError(
                f"{parent.path} has {folder.path.name!r}, a dataset with splits of its own, beside {others}: "
                f"give {folder.path}, or move it elsewhere"
            )
    alike = len({frozenset(inner.path.name for inner in folder.folders) for folder in parent.folders}) == 1
    parts = all(map(PARTS.fullmatch, names)) or (alike and any(map(LIKE_SPLITS.search, names)))
    if len(names) > 1 and parts and all(folder.images_in_folders for folder in parent.folders):
        raise DataError(
            f"{parent.path} has {format_names(names)}, which may be parts of one dataset or classes: "
            "merge the class folders in them, or rename them"
        )


def _scan(path: Path, above: tuple[str, ...]) -> Folder:
    """Return the content of a folder; links to the folders `above` it are not followed."""
    folders, files = visible(path)
    ours = {file for file in files if OUR_FIGURES.fullmatch(file.name) and made_by_alexnet(file)}
    parent = Folder(path, [file for file in files if file not in ours], [], [(file, MADE) for file in sorted(ours)])
    above = (*above, os.path.realpath(path))
    for inner in folders:
        if inner.name.lower() in SYSTEM_FOLDERS:
            parent.ignored.append((inner, "a folder of an archive program or the operating system"))
        elif os.path.realpath(inner) not in above:
            result = _scan(inner, above)
            if reason := _no_images(result):
                parent.ignored.append((inner, reason))
            else:
                parent.folders.append(result)
    if any(PICTURES.fullmatch(inner.path.name) for inner in parent.folders):
        masks = [inner for inner in parent.folders if MASKS.fullmatch(inner.path.name)]
        parent.ignored.extend((inner.path, "masks of the images beside it, by its name") for inner in masks)
        parent.folders[:] = [inner for inner in parent.folders if inner not in masks]
    return parent


def _no_images(folder: Folder) -> str:
    """Return why a folder is neither a class nor a split; empty if it may be one."""
    images = [file for file in folder.files if file.suffix.lower() in IMAGE_SUFFIXES]
    may_be_ours = images or any((folder.path / name).is_file() for name in MARKER_FILES)
    if may_be_ours and not folder.folders and all(map(_is_our_figure, images)):
        return MADE
    if folder.folders or folder.has_images:
        return ""
    if any(reason == MADE for _, reason in folder.ignored):  # `runs`
        return MADE
    return "no images in it" if folder.files or folder.ignored else "class folder without files"


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in IMAGE_SUFFIXES or _opens(file)


def _is_our_figure(file: Path) -> bool:
    return bool(OUR_FIGURES.fullmatch(file.name)) or made_by_alexnet(file)


def _opens(file: Path) -> bool:
    """Return whether the content of a file is an image, whatever its name."""
    try:
        with open_image(file):
            return True
    except Exception:  # Pillow raises many types
        return False


def _splits(parent: Folder) -> dict[Path, str]:
    """Return the folders in `parent` that are splits, with their splits; empty if they are classes."""
    by_name = {folder: split_of_folder(folder.path.name) for folder in parent.folders}
    other_words = [words for split, words in by_name.values() if split]
    named = {f: split for f, (split, words) in by_name.items() if split and (not words or other_words.count(words) > 1)}
    others = [folder for folder in parent.folders if folder not in named]
    if not named or not (_hold_classes(list(named), others) or ("train" in named.values() and not others)):
        return {}
    for split in sorted(set(named.values())):
        if len(same := [folder.path.name for folder, its in named.items() if its == split]) > 1:
            raise DataError(
                f"{parent.path} has {format_names(same)}, each of which could be {split}: move one of them elsewhere"
            )
    complete = "train" in named.values() and len(named) > 1
    if not complete and (alike := [folder.path.name for folder in others if folder.images_in_folders]):
        name = next(iter(named)).path.name
        raise DataError(
            f"{parent.path} has {name!r} and {format_names(alike)}, all with folders in them, which may be splits or classes: "
            f"for splits, name them train, val and test, or move the others elsewhere; for classes, rename {name!r}"
        )
    return {folder.path: split for folder, split in named.items()}


def _hold_classes(named: list[Folder], others: list[Folder]) -> bool:
    """Return whether folders named like splits contain classes: as folders, or as labels in file names."""
    if any(folder.images_in_folders for folder in named):
        return True
    inner = [{folder.path.name for folder in each.folders} for each in named]
    if len(inner) > 1 and set.intersection(*inner):  # there are stray images beside the class folders
        return True
    labels = [_labels_in_names(folder) for folder in named]
    shared = set.intersection(*labels)
    return len(named) > 1 and len(shared) > 1 and not any(shared <= _labels_in_names(folder) for folder in others)


def _labels_in_names(folder: Folder) -> set[str]:
    return {match["label"] for file in folder.files if (match := LABEL.match(file.stem))}


def _read_splits(root: Path, parent: Folder) -> tuple[list[Row], list[Skipped]]:
    splits = parent.splits
    skipped = [Skipped(file.relative_to(root).as_posix(), "not in a split's folder") for file in parent.files]
    skipped += Folder(parent.path, [], [], parent.ignored).skipped(root)
    inside = {folder.path: _unwrap(folder) for folder in parent.folders if folder.path in splits}
    skipped += [
        Skipped(folder.path.relative_to(root).as_posix(), "not a split, unlike the folders beside it")
        for folder in parent.folders
        if folder.path not in splits
    ]
    in_folders = any(folder.folders for folder in inside.values())
    rows: list[Row] = []
    for path, folder in inside.items():
        inner, left_out = _read_classes(root, folder, splits[path], in_names=not in_folders)
        rows += inner
        skipped += left_out
    if {row.split for row in rows} == {"train"}:  # alone, or beside an unlabelled test folder: not split yet
        rows = [row._replace(split="") for row in rows]
    return rows, skipped


def _unwrap(folder: Folder) -> Folder:
    """Return the folder that contains the classes: the inner one of `train/train/cat` and `train/train/cat.17.jpg`."""
    if folder.images_in_folders and len(folder.folders) == 1:
        only = folder.folders[0]
        if split_of_folder(only.path.name)[0] == split_of_folder(folder.path.name)[0]:
            return _unwrap(only)
    return folder


def _read_classes(root: Path, parent: Folder, split: str, *, in_names: bool = True) -> tuple[list[Row], list[Skipped]]:
    """Read class folders or, if there are none and with `in_names`, labels from file names."""
    named: list[Row] = []
    skipped = parent.skipped(root)
    for file in parent.files:
        name = file.relative_to(root).as_posix()
        if parent.folders or not in_names:
            skipped.append(Skipped(name, "not in a class folder"))
        elif file.suffix.lower() == ".png" and made_by_alexnet(file):
            skipped.append(Skipped(name, MADE))
        elif not _is_image(file):
            skipped.append(Skipped(name, "not an image"))
        elif match := LABEL.match(file.stem):
            named.append(Row(name, match["label"], split))
        else:
            skipped.append(Skipped(name, "no label in the file's name"))
    if reason := why_not_labels(row.label for row in named):
        skipped += [Skipped(row.image, reason) for row in named]
    rows = [] if reason else named
    splits = {} if split else _splits_inside(parent)
    for folder in parent.folders:
        for file in folder.all_files():
            path = file.relative_to(folder.path).parts[0]
            rows.append(Row(file.relative_to(root).as_posix(), folder.path.name, splits.get(path, split)))
    return rows, skipped


def _splits_inside(parent: Folder) -> dict[str, str]:
    """Return the split of each folder name inside class folders if all are splits: `cat/train`, `cat/val`, `dog/train`."""
    inside = {inner.path.name: split_of_folder(inner.path.name) for folder in parent.folders for inner in folder.folders}
    splits = {name: split for name, (split, words) in inside.items() if not words}
    complete = splits.keys() == inside.keys() and "train" in splits.values() and len(set(splits.values())) == len(splits) > 1
    return splits if complete and "" not in splits.values() and not any(folder.has_images for folder in parent.folders) else {}
