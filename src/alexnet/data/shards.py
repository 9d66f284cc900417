"""Read WebDataset shards: tar archives in which an image and its label have the same name: `a/0012.jpg`, `a/0012.cls`.

The name ends at the first dot of the file's name. The label is in `.cls`, as a number or a word, or in the field `label` of
`.json`; a setting names another field or ending. Shards are files, or URLs that fsspec reads. What is in them is listed once,
and kept in the user's cache.
"""

import hashlib
import json
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from alexnet.data import remote
from alexnet.data.contents import Contents
from alexnet.data.folders import IMAGE_SUFFIXES
from alexnet.data.label_names import FILES as NAME_FILES
from alexnet.data.label_names import name_labels
from alexnet.data.listing import SUFFIXES as TABLES
from alexnet.data.name_patterns import split_of_folder
from alexnet.data.remembered import remembered
from alexnet.data.scan import visible
from alexnet.data.table import Row, Skipped
from alexnet.data.tables import Rows
from alexnet.data.tars import DamagedArchive, Member, Tar
from alexnet.errors import DataError, counted, format_names, printable, truncate
from alexnet.files import user_cache, write
from alexnet.progress import say, track
from alexnet.recipe import Data

SUFFIX = ".tar"
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")  # train-{000000..000146}.tar
MOST = 1_000_000  # shards of a range
LABEL_LIMIT = 1 << 16  # bytes of a file with a label
LISTED_AT_ONCE = 16  # shards on a server
DAMAGED = "cut off, or not a tar archive"


class Sample(NamedTuple):
    """An image of a shard: its name in the archive, its label (empty if it has none), its place, and why it is not used."""

    name: str
    label: str
    start: int
    size: int
    problem: str = ""


def is_shards(data: str) -> bool:
    """Return whether a dataset is shards: an archive, or several by a range of numbers, or a folder with no other data."""
    if _is_archive(data):
        return remote.is_remote(data) or bool(RANGE.search(data)) or Path(data).is_file()
    if not Path(data).is_dir() or not _archives(Path(data)):
        return False
    folders, files = visible(Path(data))
    return not folders and not any(file.suffix.lower() in (*IMAGE_SUFFIXES, *TABLES) for file in files)


def _is_archive(data: str) -> bool:
    """Return whether a name is that of an archive; a URL may end in a query, such as a signature."""
    return (data.partition("?")[0] if remote.is_remote(data) else data).lower().endswith(SUFFIX)


def read_shards(data: str, settings: Data) -> Rows:
    """Return the images of shards.

    The split is in the names of the shards, such as `train-000000.tar`. Numbers become the names in `labels.txt` or
    `classes.txt` in the folder, as for tables.

    Raises:
        DataError: no shard is there, or a server does not answer.
        AlexNetError: a library for the URL is missing.
    """
    locations = _expand(data) if _is_archive(data) else [str(path) for path in _archives(Path(data))]
    there = [remote.exists(name) if remote.is_remote(name) else Path(name).is_file() for name in locations]
    present = [name for name, here in zip(locations, there, strict=True) if here]
    skipped = [Skipped(Path(name).name, "no such file") for name, here in zip(locations, there, strict=True) if not here]
    if not present:
        raise DataError(f"{truncate(data)}: no such file")
    if skipped:
        say(f"{counted(len(skipped), 'shard')} of {truncate(data)} missing, such as {skipped[0].image}: the others are used")
    rows: list[Row] = []
    contents, splits = Contents({}), _splits(data, present)
    alike = len({Path(name).stem for name in present}) < len(present)  # in several folders
    for archive, samples in _listings(present, settings.columns.get("label"), skipped):
        for sample in samples:
            shard = f"{archive.path.parent.name}/{archive.stem}" if alike else archive.stem
            name = f"{shard}/{sample.name.lstrip('/')}"
            why = sample.problem or ("listed twice" if name in contents.places else "" if sample.label else "no label")
            if why:
                skipped.append(Skipped(name, why))
            else:
                contents.places[name] = archive, (sample.start, sample.size)
                rows.append(Row(name, sample.label, splits[archive.location]))
    if not rows:
        shape = "a WebDataset shard has 0012.cls or 0012.json beside 0012.jpg"
        raise DataError(f"{truncate(data)} has no images with labels: {shape}; unpack other archives")
    return Rows(name_labels(rows, settings.label_names, [_folder(present[0])]), skipped, contents)


def _folder(shard: str) -> Path:
    """Return the folder of a shard, or for a URL, one with a copy of the names of labels beside it."""
    if not remote.is_remote(shard):
        return Path(shard).parent
    place = shard.rpartition("/")[0]
    folder = user_cache() / "labels"
    try:
        if name := next((name for name in NAME_FILES if remote.exists(f"{place}/{name}")), None):
            content = remote.read(f"{place}/{name}")
            folder = folder / hashlib.sha256(content).hexdigest()[:32]
            folder.mkdir(parents=True, exist_ok=True)
            write(folder / name, lambda part: part.write_bytes(content))
    except DataError as error:  # some stores refuse to say whether there is a file
        say(f"{error}; so labels that are numbers have no names (--label-names gives some)")
    return folder


def _archives(folder: Path) -> list[Path]:
    return [file for file in visible(folder)[1] if file.suffix.lower() == SUFFIX]


def _expand(data: str) -> list[str]:
    """Return the names that a range of numbers stands for, or the one that is given."""
    if (found := RANGE.search(data)) is None:
        return [data]
    first, last = found.groups()
    if not 0 <= int(last) - int(first) < MOST:
        raise DataError(f"{truncate(data)}: the range of numbers should have 1 to {MOST:,}")
    numbers = (f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1))
    return [data[: found.start()] + number + data[found.end() :] for number in numbers]


def _splits(data: str, shards: Sequence[str]) -> dict[str, str]:
    """Return the split of each shard, by its name; empty if none has one, or if all are of `train`."""
    splits = {shard: split_of_folder(Tar(shard).stem)[0] for shard in shards}
    if {*splits.values()} <= {"", "train"}:
        return dict.fromkeys(shards, "")
    if unnamed := [Path(shard).name for shard in shards if not splits[shard]]:
        raise DataError(
            f"{truncate(data)} has {format_names(unnamed)}, which is not of train, val or test, unlike others: move it away"
        )
    return splits


def _listings(shards: Sequence[str], field: str | None, skipped: list[Skipped]) -> Iterator[tuple[Tar, list[Sample]]]:
    """Yield each shard with its images; add damaged ones to `skipped`."""
    if not shards:
        return
    archives = [Tar(shard) for shard in shards]
    with ThreadPoolExecutor(LISTED_AT_ONCE if remote.is_remote(shards[0]) else 1) as pool:
        listed = pool.map(lambda archive: _listing(archive, field), archives)
        for archive, (samples, problem) in zip(archives, track(listed, "Listing shards", len(shards)), strict=True):
            if problem:
                say(f"{problem}; what comes before is used")
                skipped.append(Skipped(Path(archive.location).name, DAMAGED))
            yield archive, samples


def _listing(archive: Tar, field: str | None) -> tuple[list[Sample], str]:
    """Return the images of a shard, and what is wrong with it; from the user's cache, if it was listed before."""
    before = list[Sample]()

    def samples() -> Iterator[Sample]:
        before.clear()
        for sample in _samples(archive, field):
            before.append(sample)
            yield sample

    for attempt in range(remote.TRIES):
        try:
            fact = archive.fact()
            sure = "" if "\0" in fact else str(time.time_ns())  # a size alone does not tell whether a shard has changed
            return [Sample(*row) for row in remembered((archive.location, fact, field or "", sure), samples)], ""
        except DamagedArchive as error:
            return before, str(error)
        except DataError as error:  # a server that fails while it is read
            if attempt == remote.TRIES - 1 or not remote.is_remote(archive.location):
                raise
            say(f"{error}; trying again")
    raise AssertionError


def _samples(archive: Tar, field: str | None) -> Iterator[Sample]:
    """Yield the samples of a shard: successive files of the same name."""
    key, members = "", dict[str, Member]()
    for member in archive.members(wanted=lambda name, size: size <= LABEL_LIMIT and not _is_image(name)):
        folder, _, file = member.name.rpartition("/")
        if file.startswith("._"):  # of macOS
            continue
        stem, _, ending = file.partition(".")
        if (name := f"{folder}/{stem}") != key and members:
            yield _sample(key, members, field)
            members = {}
        key = name
        members[ending.lower()] = member
    if members:
        yield _sample(key, members, field)


def _sample(key: str, members: dict[str, Member], field: str | None) -> Sample:
    images = {ending: member for ending, member in members.items() if _is_image(member.name)}
    images = {ending: member for ending, member in images.items() if "." not in ending} or images  # not `seg.png`
    if len(images) != 1:
        return Sample(key, "", 0, 0, "no image" if not images else f"several images: {', '.join(sorted(images))}")
    [image] = images.values()
    return Sample(image.name, _label(members, field), image.start, image.size)


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def _label(members: dict[str, Member], field: str | None) -> str:
    """Return the label of an image as text; empty if it has none."""
    if (file := members.get(field or "cls")) and file.content:
        return printable(file.content.decode("utf-8", "replace").strip())
    file = members.get("json")
    try:
        value = json.loads(file.content if file else b"{}").get(field or "label")
    except (ValueError, AttributeError, RecursionError):
        return ""
    return printable(str(value).strip()) if isinstance(value, str | int) else ""
