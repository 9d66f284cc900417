"""Write a dataset as WebDataset shards: tar archives of images and their labels, in random order."""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from alexnet.data.cache import fingerprints
from alexnet.data.decode_pool import decode_all
from alexnet.data.sources import open_table
from alexnet.data.table import SPLITS, Table
from alexnet.errors import AlexNetError, DataError, ImageError, Interrupted, RunError, counted, error_reason
from alexnet.files import is_full, local_path, read_json, remove_leftovers, rename, temporary_name, write_json, write_text
from alexnet.progress import track
from alexnet.recipe import Recipe

SHARD = 1 << 28  # bytes of a shard, about
MOST = 10_000  # images in a shard
COMPRESSED = 0.15  # bytes of a JPEG for each of its values, about
STATE, LABELS = "shards.json", "labels.txt"


class Entry(NamedTuple):
    """Row `row` of a table, the number of its label, and its split."""

    table: Table
    row: int
    label: int
    split: str


def shard(
    data: str | Path,
    out: str | Path,
    *,
    side: int | None = 256,
    quality: int = 90,
    data_root: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a dataset as WebDataset shards, which are fewer files, and smaller. A call that was stopped goes on.

    Args:
        data: a folder, a CSV, Parquet or JSON lines file, shards, or the name of a built-in dataset.
        out: folder for the shards, new or empty.
        side: larger images are scaled to this many pixels on their shorter side (bicubic). None: files stay as they are.
        quality: of the JPEG files, 1 to 95; images that are not larger than `side` stay as they are, without loss.
        data_root: folder of downloaded datasets. Default: ALEXNET_DATA in the environment.
        settings: recipe keys that say how to read a table, such as `{"data.label_column": "breed"}`.

    Returns:
        `{"folder", "images", "shards": [name], "skipped": [{"image", "error"}]}`. Shards are named by their split, such as
        `train-000000.tar`, or `images-000000.tar` if the dataset has none. Images are in random order.

    Raises:
        DataError: the dataset does not exist, or cannot be read, or has groups but no splits.
        RunError: `out` holds something else, or cannot be written.
        Interrupted: Ctrl-C stopped it; the same call goes on.
        AlexNetError: `side` or `quality` is out of range.
    """
    if side is not None and side < 8:
        raise AlexNetError(f"side is {side}, but should be 8 or more")
    if not 1 <= quality <= 95:
        raise AlexNetError(f"quality is {quality}, but should be from 1 to 95")
    reading = Recipe().with_settings(settings or {}).data
    table = open_table(data, None if data_root is None else Path(data_root), settings=reading)
    if table.groups is not None and not (table.splits != "").any():
        raise DataError(f"{table.name} has groups, which shards cannot keep together: give each image a split first")
    labels = (*table.labels, *([reading.none_label] if table.unknown else []))
    folder, shards = local_path(out), _divide(_entries(table), side)
    state = _open(folder, _digest(table, [side, quality, labels, list(shards)]))
    write_json(folder / STATE, state)
    write_text(folder / LABELS, "".join(f"{number}\t{label}\n" for number, label in enumerate(labels)))
    for number, (name, entries) in enumerate(shards.items()):
        if name not in state["shards"] or not (folder / name).is_file():
            try:
                state["shards"][name] = _write(entries, folder / name, side, quality, reading.workers)
            except KeyboardInterrupt as error:
                many = f"{number:,} of {counted(len(shards), 'shard')} written"
                raise Interrupted(f"stopped, {many}: the same command goes on from there", 130) from error
            write_json(folder / STATE, state)
    skipped = [{"image": one.image, "error": one.reason} for one in table.skipped]
    skipped += [one for name in shards for one in state["shards"][name]]
    images = sum(map(len, shards.values())) - sum(map(len, state["shards"].values()))
    return {"folder": str(folder), "images": images, "shards": list(shards), "skipped": skipped}


def _digest(table: Table, settings: list[Any]) -> str:
    """Return a hash of everything that determines the shards: settings, labels, splits, and the files, as far as they say."""
    tables: list[Table] = [table] if table.unknown is None else [table, table.unknown]
    rows = [[list(each.images), each.targets.tolist(), each.splits.tolist(), fingerprints(each, "")] for each in tables]
    return hashlib.sha256(json.dumps([settings, rows]).encode()).hexdigest()


def _entries(table: Table) -> list[Entry]:
    entries = [Entry(table, row, int(table.targets[row]), str(table.splits[row])) for row in range(len(table))]
    if (others := table.unknown) is not None:
        entries += [Entry(others, row, len(table.labels), str(others.splits[row])) for row in range(len(others))]
    return entries


def _divide(entries: Sequence[Entry], side: int | None) -> dict[str, list[Entry]]:
    """Return the images of each shard, by its name, each split in random order."""
    sample = entries[:: max(1, len(entries) // 200)]
    sizes = [_size(entry, side) for entry in sample]
    each = int(np.clip(SHARD / max(1.0, float(np.mean(sizes))), 1, MOST))
    shards: dict[str, list[Entry]] = {}
    for split in ("", *SPLITS):
        own = [entry for entry in entries if entry.split == split]
        order = np.random.default_rng(0).permutation(len(own)).tolist()
        for number, start in enumerate(range(0, len(own), each)):
            shards[f"{split or 'images'}-{number:06}.tar"] = [own[i] for i in order[start : start + each]]
    return shards


def _size(entry: Entry, side: int | None) -> float:
    """Return about how many bytes an image takes in a shard."""
    if side is not None:
        return COMPRESSED * 3 * side**2
    source = entry.table.source(entry.row)
    return (
        source.stat().st_size if isinstance(source, Path) else source.nbytes if isinstance(source, np.ndarray) else len(source)
    )


def _open(out: Path, digest: str) -> dict[str, Any]:
    """Make the folder of shards, or read the state of one that the same call left unfinished."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not any(out.iterdir()):
            return {"made_by": "alexnet", "digest": digest, "shards": {}}  # unreadable images, by the name of the shard
    except OSError as error:
        raise RunError(f"cannot write {out}: {error_reason(error)}; name another --out") from error
    state = read_json(out / STATE) if (out / STATE).is_file() else {}
    if state.get("digest") != digest:
        raise RunError(f"{out} holds other files, or shards made otherwise: name another --out")
    remove_leftovers(out, "*.tar.*.part")
    return state


def _write(entries: Sequence[Entry], path: Path, side: int | None, quality: int, workers: int) -> list[dict[str, str]]:
    """Write a shard; return the images that could not be read."""
    skipped = []
    settings: dict[str, Any] = {"side": side, "quality": quality}
    answers = decode_all("packed", (entry.table.source(entry.row) for entry in entries), workers, **settings)
    part = temporary_name(path)
    try:
        with part.open("wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            shown = track(entries, f"Writing {path.name}", len(entries))
            for number, (entry, (_, answer)) in enumerate(zip(shown, answers, strict=True)):
                if isinstance(answer, ImageError):
                    skipped.append({"image": entry.table.images[entry.row], "error": str(answer)})
                    continue
                for ending, content in ((answer.facts["ending"], answer.body), ("cls", str(entry.label).encode())):
                    member = tarfile.TarInfo(f"{number:06}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
            archive.close()
            file.flush()
            os.fsync(file.fileno())
        rename(part, path)
    except OSError as error:
        remedy = "; free some space, and repeat the command" if is_full(error) else ""
        raise RunError(f"cannot write {path}: {error_reason(error)}{remedy}") from error
    finally:
        part.unlink(missing_ok=True)
    return skipped
