"""Read ImageNet (ILSVRC 2012) as it is published: as archives or unpacked, with the labels of the validation images in a list.

`imagenet/` may hold the official archives and development kit, or what Kaggle publishes:

    ILSVRC2012_img_train.tar    or ILSVRC2012_img_train/n01440764/n01440764_18.JPEG
    ILSVRC2012_img_val.tar      or ILSVRC2012_img_val/ILSVRC2012_val_00000001.JPEG
    ILSVRC2012_devkit_t12.tar.gz or ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt and meta.mat

    ILSVRC/Data/CLS-LOC/train/n01440764/n01440764_18.JPEG
    ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000001.JPEG
    LOC_val_solution.csv

Class folders, as torchvision prepares them, are read like those of any dataset.
"""

import csv
import io
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from alexnet.data.contents import Contents
from alexnet.data.imagenet import NAME
from alexnet.data.remembered import remembered
from alexnet.data.table import Row, Skipped
from alexnet.data.tables import Rows
from alexnet.data.tars import Tar
from alexnet.errors import DataError, counted, error_reason, truncate
from alexnet.progress import say, track

KAGGLE = ("Data/CLS-LOC", "ILSVRC/Data/CLS-LOC")
FOLDERS = {
    split: (f"ILSVRC2012_img_{split}", *(f"{folder}/{split}" for folder in KAGGLE), split) for split in ("train", "val", "test")
}
ARCHIVES = {split: f"ILSVRC2012_img_{split}.tar" for split in ("train", "val")}
SOLUTION = "LOC_val_solution.csv"
KIT = "ILSVRC2012_devkit_t12"
KIT_FILES = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
KIT_LIMIT = 1 << 24  # bytes of a file of the kit; they have 0.2 and 1 MB
WNID = re.compile(r"n\d{8}")
VALIDATION = re.compile(r"ILSVRC2012_val_\d{8}", re.IGNORECASE)

Image = tuple[str, str]  # the name of an image, relative to the root, and its label


def find_ilsvrc(root: Path) -> Path:
    """Return the folder of ImageNet in the folder of datasets: `imagenet`, or the folder itself.

    Raises:
        DataError: it is in neither.
    """
    parts = [name for split in ARCHIVES for name in (*FOLDERS[split], ARCHIVES[split])]
    for folder in (root / NAME, root):
        if any((folder / part).exists() for part in parts):
            return folder
    where = f"it is neither in {root / NAME} nor in {root}"
    raise DataError(f"ImageNet must be downloaded by hand, from image-net.org or Kaggle: {where}; give its folder")


def read_ilsvrc(root: Path) -> Rows | None:
    """Return the images of ImageNet with their WordNet IDs as labels; None if the folder is arranged otherwise.

    Raises:
        DataError: there are validation images without the list of their labels, or an archive is damaged.
    """
    if not _is_published(root):
        return None
    contents, skipped = Contents({}), list[Skipped]()
    images = {split: _images(root, split, contents, skipped) for split in ARCHIVES}
    if test := _folder(root, "test"):
        skipped.append(Skipped(test.relative_to(root).as_posix(), "the labels of ImageNet's test images are secret"))
    if contents.places and any(_folder(root, split) for split in ARCHIVES):
        raise DataError(f"{root} has one part of ImageNet as an archive and the other unpacked: unpack both, or none")
    rows = [Row(name, label, split if all(images.values()) else "") for split in images for name, label in images[split]]
    return Rows(rows, skipped, contents if contents.places else None)


def _is_published(root: Path) -> bool:
    """Return whether a folder is arranged otherwise than in class folders, which are read like those of any dataset."""
    found = [folder for split in FOLDERS if (folder := _folder(root, split))]
    unusual = any(folder.name not in FOLDERS or folder.parent.name == "CLS-LOC" for folder in found)
    packed = any((root / name).is_file() for name in ARCHIVES.values())
    return unusual or packed or any(folder.name == "val" and _is_flat(folder) for folder in found)


def _images(root: Path, split: str, contents: Contents, skipped: list[Skipped]) -> list[Image]:
    """Return the images of a split; add the places of those in archives to `contents`, and those without label to `skipped`."""
    folder, archive = _folder(root, split), Tar(str(root / ARCHIVES[split]))
    if folder is None and not archive.path.is_file():
        return []
    if folder is not None and not (split == "val" and _is_flat(folder)):
        return list(_class_folders(root, folder))
    if split == "train":
        return list(_class_archives(archive, contents))
    names = _archived(archive, contents) if folder is None else _files(root, folder)
    images, unlisted = _labelled(list(names), *_validation_labels(root))
    skipped += unlisted
    return images


def _folder(root: Path, split: str) -> Path | None:
    return next((root / name for name in FOLDERS[split] if (root / name).is_dir()), None)


def _is_flat(folder: Path) -> bool:
    """Return whether a folder holds validation images as published, without folders for the classes."""
    with os.scandir(folder) as entries:
        return any(VALIDATION.match(entry.name) for entry in entries)


def _names(folder: Path) -> list[str]:
    """Return what is in a folder, sorted, without hidden files."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith("."))


def _class_folders(root: Path, folder: Path) -> Iterator[Image]:
    classes = [name for name in _names(folder) if WNID.fullmatch(name)]
    if not classes:
        raise DataError(f"{folder} has no folders named by WordNet IDs: unpack each n….tar into a folder of its name")
    place = folder.relative_to(root).as_posix()
    for wnid in track(classes, f"Listing {folder.name}", len(classes)):
        yield from ((f"{place}/{wnid}/{name}", wnid) for name in _names(folder / wnid))


def _files(root: Path, folder: Path) -> Iterator[str]:
    place = folder.relative_to(root).as_posix()
    return (f"{place}/{name}" for name in _names(folder))


def _class_archives(archive: Tar, contents: Contents) -> Iterator[Image]:
    """Yield the images of an archive of an archive for each class."""

    def members() -> Iterator[tuple[str, str, int, int]]:
        for inner in track(archive.members(), f"Listing {archive.stem}"):
            wnid = PurePosixPath(inner.name).stem
            if WNID.fullmatch(wnid):
                yield from ((member.name, wnid, member.start, member.size) for member in archive.members(inner))

    for name, wnid, start, size in remembered((archive.location, archive.fact()), members):
        yield _placed(archive, contents, f"{wnid}/{PurePosixPath(name).name}", start, size), wnid


def _archived(archive: Tar, contents: Contents) -> Iterator[str]:
    """Yield the names of the images of an archive, and add their places to `contents`."""
    members = (member[:3] for member in archive.members())
    for name, start, size in remembered((archive.location, archive.fact()), lambda: members):
        yield _placed(archive, contents, PurePosixPath(name).name, start, size)


def _placed(archive: Tar, contents: Contents, name: str, start: int, size: int) -> str:
    full = f"{archive.stem}/{name}"
    contents.places[full] = archive, (start, size)
    return full


def _labelled(names: list[str], labels: dict[str, str], source: Path) -> tuple[list[Image], list[Skipped]]:
    """Return validation images with their labels, by the number in their names, and those that are not in the list."""
    stems = [PurePosixPath(name).stem for name in names]
    images = [(name, labels[stem]) for name, stem in zip(names, stems, strict=True) if stem in labels]
    skipped = [Skipped(name, f"not in {source.name}") for name, stem in zip(names, stems, strict=True) if stem not in labels]
    if len(images) < len(labels):
        say(f"{source} lists {counted(len(labels), 'image')}, of which {len(images):,} are here")
    return images, skipped


def _validation_labels(root: Path) -> tuple[dict[str, str], Path]:
    """Return the WordNet IDs of the validation images by their names without `.JPEG`, and the file that has them."""
    lists: list[tuple[Path, Callable[[Path], dict[str, str]]]] = [
        *((folder / SOLUTION, _read_solution) for folder in (root, root / "ILSVRC", root.parent)),
        *((root / name / "data" / KIT_FILES[0], _read_kit) for name in (KIT, "devkit", ".")),
        (root / f"{KIT}.tar.gz", _read_kit_archive),
    ]
    for path, read in lists:
        if path.is_file():
            try:
                return read(path), path
            except OSError as error:
                raise DataError(f"cannot read {path}: {error_reason(error)}") from error
            except (ValueError, KeyError, IndexError, StopIteration, tarfile.TarError, EOFError) as error:
                raise DataError(f"{path} is not the list of ImageNet's validation labels: {truncate(str(error))}") from error
    needed = f"{SOLUTION} (Kaggle) or {KIT}.tar.gz (the official development kit)"
    raise DataError(f"{root} has validation images, but not the list of their labels: put {needed} there")


def _read_solution(path: Path) -> dict[str, str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        labels = {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(file)}
    return _checked(labels)


def _read_kit(path: Path) -> dict[str, str]:
    return _by_number(path.read_bytes(), (path.parent / KIT_FILES[1]).read_bytes())


def _read_kit_archive(path: Path) -> dict[str, str]:
    with tarfile.open(path, "r:gz") as archive:
        found = {PurePosixPath(info.name).name: info for info in archive if info.isreg() and info.size <= KIT_LIMIT}
        files: list[Any] = [archive.extractfile(found[name]) for name in KIT_FILES]
        return _by_number(*(file.read() for file in files))


def _by_number(truth: bytes, meta: bytes) -> dict[str, str]:
    """Return the labels from the kit: a number for each image in order, and a table of the numbers' WordNet IDs."""
    from scipy.io import loadmat

    synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
    wnids = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets}
    numbers = map(int, truth.decode("ascii").split())
    return _checked({f"ILSVRC2012_val_{i:08}": wnids[number] for i, number in enumerate(numbers, 1)})


def _checked(labels: dict[str, str]) -> dict[str, str]:
    if odd := next((label for label in labels.values() if not WNID.fullmatch(label)), None):
        raise ValueError(f"{odd!r} is not a WordNet ID")
    return labels
