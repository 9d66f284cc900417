"""Read a folder of images: decide which folders are classes, which are splits, and which are neither.

The content of folders decides first, then their names: a folder `train` is a split if it contains class folders, and a class
if both it and the folders beside it contain images.
"""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from alexnet.data.decode import describe_file, is_image
from alexnet.data.name_patterns import LABEL, split_of_folder, why_not_labels
from alexnet.data.scan import is_alexnet_folder, visible
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
        *(".pnm", ".jp2", ".j2k", ".jpx", ".avif", ".heic", ".heif", ".hif", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf"),
        *(".orf", ".rw2", ".pef", ".srw"),
    )
)
SNIFFED = 20  # files to open in a folder where no name has such a suffix
# Folders that archive programs, operating systems and Python create.
SYSTEM_FOLDERS = ("__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found", "__pycache__")
# Figures of `explain`, `ablate` and `--find-lr`.
OUR_FIGURES = re.compile(r".+-explained\.png|filters\.png|ablation\.png|.+-(lr|rate)\.png")
MADE = "made by alexnet, not a training image"
NO_SPLIT = "not in a split's folder"

Skip = tuple[Path, str]  # a file or folder, with the reason why it is left out
Image = tuple[Path, str, str]  # an image, its label and its split


@dataclass(frozen=True, eq=False)
class Folder:
    """A folder: its `files`, its `folders` that contain images, and what is `ignored` in it and below."""

    path: Path
    files: list[Path]
    folders: list["Folder"]
    ignored: list[Skip]

    @cached_property
    def has_images(self) -> bool:
        """Whether there are images among its own files."""
        return any(map(_named_image, self.files)) or any(map(is_image, self.files[:SNIFFED]))

    @cached_property
    def splits(self) -> dict[Path, str]:
        """The inner folders that are splits, with their splits; empty if they are classes."""
        by_name = {folder: split_of_folder(folder.path.name) for folder in self.folders}
        other_words = [words for split, words in by_name.values() if split]
        named = {f: split for f, (split, words) in by_name.items() if split and (not words or other_words.count(words) > 1)}
        others = [folder for folder in self.folders if folder not in named]
        if not named or not (_hold_classes(list(named), others) or ("train" in named.values() and not others)):
            return {}
        for split in sorted(set(named.values())):
            if len(same := [folder.path.name for folder, its in named.items() if its == split]) > 1:
                several = f"{format_names(same)}, each of which could be {split}"
                raise DataError(f"{self.path} has {several}: move one of them elsewhere")
        complete = "train" in named.values() and len(named) > 1
        if not complete and (alike := [folder.path.name for folder in others if folder.images_in_folders]):
            name = next(iter(named)).path.name
            both = f"{name!r} and {format_names(alike)}, all with folders in them, which may be splits or classes"
            advice = f"for splits, name them train, val and test, or move the others elsewhere; for classes, rename {name!r}"
            raise DataError(f"{self.path} has {both}: {advice}")
        return {folder.path: split for folder, split in named.items()}

    @property
    def images_in_folders(self) -> bool:
        """Whether all images are in inner folders."""
        return bool(self.folders) and not self.has_images

    def walk(self) -> Iterator["Folder"]:
        """Yield the folder and those below it."""
        yield self
        for inner in self.folders:
            yield from inner.walk()

    def all_files(self) -> list[Path]:
        """Return all files in the folder and below, sorted; a folder that is linked twice counts once."""
        if not self.folders:
            return self.files  # sorted already
        folders = {os.path.realpath(folder.path): folder for folder in reversed(list(self.walk()))}
        return sorted(file for folder in folders.values() for file in folder.files)


def read_folder(root: Path) -> tuple[list[Row], list[Skipped]]:
    """Return a row for each image in the folder, and the files and folders that are left out."""
    tree = _scan(root, ())
    if tree.splits:
        images, skipped = _read_splits(tree)
    elif tree.images_in_folders and len(tree.folders) == 1 and tree.folders[0].splits:  # photos/data/train/cat
        images, skipped = _read_splits(tree.folders[0])
        skipped += [(file, NO_SPLIT) for file in tree.files]
    else:
        _refuse_parts(tree)
        images, skipped = _read_classes(tree, "")

    before = len(str(root / "x")) - 1

    def name(path: Path) -> str:  # as `path.relative_to(root).as_posix()`, in a tenth of the time
        return str(path)[before:].replace(os.sep, "/")

    rows = [Row(name(file), label, split) for file, label, split in images]
    return rows, [Skipped(name(path), reason) for path, reason in (*tree.ignored, *skipped)]


def _refuse_parts(parent: Folder) -> None:
    """Refuse folders of images alone that may be datasets of their own, or parts of one, rather than classes."""
    if not parent.images_in_folders:
        return
    names = [folder.path.name for folder in parent.folders]
    for folder in parent.folders:
        if any(inner.images_in_folders and inner.path in folder.splits for inner in folder.folders):
            others = format_names(name for name in names if name != folder.path.name)
            odd = f"{folder.path.name!r}, a dataset with splits of its own, beside {others}"
            raise DataError(f"{parent.path} has {odd}: give {folder.path}, or move it elsewhere")
    alike = len({frozenset(inner.path.name for inner in folder.folders) for folder in parent.folders}) == 1
    parts = all(map(PARTS.fullmatch, names)) or (alike and any(map(LIKE_SPLITS.search, names)))
    if len(names) > 1 and parts and all(folder.images_in_folders for folder in parent.folders):
        advice = "merge the class folders in them, or rename them"
        raise DataError(f"{parent.path} has {format_names(names)}, which may be parts of one dataset or classes: {advice}")


def _scan(path: Path, above: tuple[str, ...]) -> Folder:
    """Return the content of a folder; links to the folders `above` it are not followed."""
    folders, files = visible(path)
    ours = {file for file in files if OUR_FIGURES.fullmatch(file.name) and made_by_alexnet(file)}
    own = [file for file in files if file not in ours] if ours else files
    parent = Folder(path, own, [], [(file, MADE) for file in sorted(ours)])
    above = (*above, os.path.realpath(path))
    for inner in folders:
        if inner.name.lower() in SYSTEM_FOLDERS:
            parent.ignored.append((inner, "a folder of an archive program or the operating system"))
        elif os.path.realpath(inner) not in above:
            folder = _scan(inner, above)
            if reason := _no_images(folder):
                parent.ignored.append((inner, reason))
            else:
                parent.folders.append(folder)
    if any(PICTURES.fullmatch(folder.path.name) for folder in parent.folders):
        masks = [folder for folder in parent.folders if MASKS.fullmatch(folder.path.name)]
        parent.ignored.extend((folder.path, "masks of the images beside it, by its name") for folder in masks)
        parent.folders[:] = [folder for folder in parent.folders if folder not in masks]
    for folder in parent.folders:
        parent.ignored.extend(folder.ignored)
    return parent


def _no_images(folder: Folder) -> str:
    """Return why a folder is neither a class nor a split; empty if it may be one."""
    if folder.folders:
        return ""
    images = [file for file in folder.files if _named_image(file)]
    may_be_ours = images or is_alexnet_folder(folder.path)
    if may_be_ours and all(OUR_FIGURES.fullmatch(file.name) or made_by_alexnet(file) for file in images):
        return MADE
    if folder.has_images:
        return ""
    if any(reason == MADE for _, reason in folder.ignored):  # `runs`
        return MADE
    if folder.files and (kind := _describe(folder.files[0])):
        return f"no images in it, but {kind}"
    return "no images in it" if folder.files or folder.ignored else "class folder without files"


def _named_image(file: Path) -> bool:
    return file.suffix.lower() in IMAGE_SUFFIXES


def _describe(file: Path) -> str:
    """Return what a file is that is not an image, and what to do about it; empty if that is unknown."""
    with suppress(OSError):
        return describe_file(file)
    return ""


def _hold_classes(named: list[Folder], others: list[Folder]) -> bool:
    """Return whether folders named like splits contain classes: as folders, or as labels in file names."""
    if any(folder.images_in_folders for folder in named):
        return True
    if len(named) < 2:
        return False
    if set.intersection(*({inner.path.name for inner in folder.folders} for folder in named)):
        return True  # there are stray images beside the class folders
    shared = set.intersection(*map(_labels_in_names, named))
    return len(shared) > 1 and not any(shared <= _labels_in_names(folder) for folder in others)


def _labels_in_names(folder: Folder) -> set[str]:
    return {match["label"] for file in folder.files if (match := LABEL.match(file.stem))}


def _read_splits(parent: Folder) -> tuple[list[Image], list[Skip]]:
    images: list[Image] = []
    skipped = [(file, NO_SPLIT) for file in parent.files]
    skipped += [(f.path, "not a split, unlike the folders beside it") for f in parent.folders if f.path not in parent.splits]
    inside = [(_unwrap(folder), parent.splits[folder.path]) for folder in parent.folders if folder.path in parent.splits]
    in_folders = any(folder.folders for folder, _ in inside)
    for folder, split in inside:
        labelled, left_out = _read_classes(folder, split, in_names=not in_folders)
        images += labelled
        skipped += left_out
    if {split for _, _, split in images} == {"train"}:  # alone, or beside an unlabelled test folder: not split yet
        images = [(file, label, "") for file, label, _ in images]
    return images, skipped


def _unwrap(folder: Folder) -> Folder:
    """Return the folder that contains the classes: the inner one of `train/train/cat` and `train/train/cat.17.jpg`."""
    if folder.images_in_folders and len(folder.folders) == 1:
        only = folder.folders[0]
        if split_of_folder(only.path.name)[0] == split_of_folder(folder.path.name)[0]:
            return _unwrap(only)
    return folder


def _read_classes(parent: Folder, split: str, *, in_names: bool = True) -> tuple[list[Image], list[Skip]]:
    """Read class folders or, if there are none and with `in_names`, labels from file names."""
    images: list[Image] = []
    skipped: list[Skip] = []
    for file in parent.files:
        if parent.folders or not in_names:
            skipped.append((file, "not in a class folder"))
        elif file.suffix.lower() == ".png" and made_by_alexnet(file):
            skipped.append((file, MADE))
        elif not (_named_image(file) or is_image(file)):
            skipped.append((file, _describe(file) or "not an image"))
        elif match := LABEL.match(file.stem):
            images.append((file, match["label"], split))
        else:
            skipped.append((file, "no label in the file's name"))
    if reason := why_not_labels(label for _, label, _ in images):
        skipped += [(file, reason) for file, _, _ in images]
        images = []
    splits = {} if split else _splits_inside(parent)
    for folder in parent.folders:
        for file in folder.all_files():
            own = splits.get(file.relative_to(folder.path).parts[0], split) if splits else split
            images.append((file, folder.path.name, own))
    return images, skipped


def _splits_inside(parent: Folder) -> dict[str, str]:
    """Return the split of each folder name inside class folders if all are splits: `cat/train`, `cat/val`, `dog/train`."""
    if any(folder.has_images for folder in parent.folders):
        return {}
    names = {inner.path.name: split_of_folder(inner.path.name) for folder in parent.folders for inner in folder.folders}
    splits = {name: split for name, (split, words) in names.items() if split and not words}
    different = len(set(splits.values())) == len(splits) > 1
    return splits if different and len(splits) == len(names) and "train" in splits.values() else {}
