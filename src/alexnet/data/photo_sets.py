"""Built-in datasets of photos: Imagenette, and cats and dogs, in a local folder or downloaded and unpacked."""

import re
from pathlib import Path
from typing import NamedTuple

from alexnet.data.builtin import failing
from alexnet.data.download import MB, Source, fetch_file
from alexnet.data.unpack import unpack


class PhotoSet(NamedTuple):
    """A dataset of photos: `folders` are the names of local copies, the first that of the unpacked archive.

    `members` matches the photos in the archive, group 1 their path in the folder. `photos` is their number, and `size` the
    limit of all together in bytes. `labels` are the names of the classes, by those of their folders, where they differ.
    """

    source: Source
    folders: tuple[str, ...]
    members: re.Pattern[str]
    photos: int
    size: int
    labels: dict[str, str]


# Checksums: those of TensorFlow Datasets, and for Imagenette also of fastai and torchvision (as an MD5).
SETS = {
    "imagenette": PhotoSet(
        Source(
            "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz",
            "imagenette2-320.tgz",
            "569b4497c98db6dd29f335d1f109cf315fe127053cedf69010d047f0188e158c",
            341663724,
            unpacked=False,
        ),
        folders=("imagenette2-320", "imagenette2", "imagenette2-160", "imagenette"),
        members=re.compile(r"imagenette2-320/((?:train|val)/n\d{8}/[^/\\]+\.JPEG)"),
        photos=9469 + 3925,
        size=400 * MB,
        labels={},  # WordNet IDs, which become words everywhere
    ),
    "cats-dogs": PhotoSet(
        Source(
            "https://download.microsoft.com/download/3/E/1/3E1C3F21-ECDB-4869-8368-6DEBA77B919F/kagglecatsanddogs_5340.zip",
            "kagglecatsanddogs_5340.zip",
            "b7974bd00a84a99921f36ee4403f089853777b5ae8d151c76a86e64900334af9",
            824887076,
            unpacked=False,
        ),
        folders=("PetImages", "cats-dogs"),
        members=re.compile(r"PetImages/((?:Cat|Dog)/\d+\.jpg)"),
        photos=2 * 12500,  # two of them are empty files
        size=1000 * MB,
        labels={"Cat": "cat", "Dog": "dog"},
    ),
}
NAMES = tuple(SETS)


def open_folder(name: str, root: Path) -> Path:
    """Return the folder of a dataset's photos: a local one in `root`, else that of the archive, which may be downloaded."""
    its = SETS[name]
    local = (*(root / folder for folder in its.folders), *([root] if root.name in its.folders else []))
    if folder := next((folder for folder in local if folder.is_dir()), None):
        return folder
    with failing(root):
        archive = fetch_file(its.source, root)
        folder = root / its.folders[0]
        unpack(archive, folder, its.members, its.size)
    return folder
