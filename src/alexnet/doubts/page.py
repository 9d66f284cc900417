"""The page on which a person decides about doubtful labels: a single file, which makes a CSV file of the corrected dataset."""

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from alexnet.data.csv_reader import MISSING, WHOLE
from alexnet.data.decode_pool import Answer, decode_all
from alexnet.data.table import Table
from alexnet.errors import DataError, counted, format_names, printable, truncate
from alexnet.files import refuse_overwrite, write_output
from alexnet.plotting import file_uri, page_text
from alexnet.progress import track

SIDE = 320  # pixels of a picture's longer side
SHOWN = 1000  # photos; a page of more would be large and slow


def write_page(path: Path, table: Table, doubts: Sequence[dict[str, Any]], predicted: int, overwrite: bool = False) -> None:
    """Write the page of the `doubts` about images of a table, of which `predicted` have predictions."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    refuse_overwrite(path, overwrite)
    _check_csv(table)
    shown = list(doubts)[:SHOWN]
    position = {image: row for row, image in enumerate(table.images)}
    rows = [position[doubt["image"]] for doubt in shown]
    pictures = decode_all("preview", (table.source(row) for row in rows), os.cpu_count() or 1, side=SIDE)
    label = {name: number for number, name in enumerate(table.labels)}
    cards = [
        {
            **doubt,
            "row": row,
            "number": number,
            "chosen": label[doubt["likely"]],
            "picture": file_uri(answer.body, "jpeg") if isinstance(answer, Answer) else "",
        }
        for number, (doubt, row, (_, answer)) in enumerate(
            zip(shown, rows, track(pictures, f"Drawing {counted(len(rows), 'photo')}", len(rows)), strict=True), 1
        )
    ]
    environment = Environment(
        loader=PackageLoader("alexnet.doubts"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = "{:.1%}".format
    script = (files("alexnet.doubts") / "templates" / "page.js").read_text(encoding="utf-8")
    data = _script_data(table)
    html = environment.get_template("page.html").render(
        name=table.name,
        labels=table.labels,
        cards=cards,
        more=len(doubts) - len(shown),
        predicted=predicted,
        data=data,
        key=hashlib.sha256(data.encode("utf-8", "surrogateescape")).hexdigest()[:16],
        script=script,
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    write_output(path, lambda part: part.write_text(page_text(html), encoding="utf-8", newline="\n"), overwrite)


def _script_data(table: Table) -> str:
    """Return all images of a table as JSON for the page: path, label, and split and group if the table has them."""
    splits = table.splits.tolist() if (table.splits != "").all() else None
    columns = {
        "image": [_written(table.file(row)) for row in range(len(table))],
        "label": table.targets.tolist(),
        "split": splits,
        "group": None if table.groups is None else list(table.groups),
    }
    content = {"name": table.name, "labels": list(table.labels), "columns": columns}
    return json.dumps(content, ensure_ascii=True).replace("<", "\\u003c")  # so that no name ends the script element


def _written(file: Path) -> str:
    """Return the absolute path of an image as a CSV file can hold it: as a URL if it is not plain text in UTF-8."""
    path = file.absolute()
    text = path.as_posix()
    plain = printable(text) == text == text.strip() and text.isprintable()
    return text if plain else path.as_uri()


def _check_csv(table: Table) -> None:
    """Raise DataError if no CSV file can list the images, or if a label would be read back as another."""
    if table.pixels is not None or table.contents is not None:
        raise DataError(
            f"the images of {table.name} are not files, so no CSV file can list them: use --csv, the list of doubts"
        )
    if lost := [label for label in table.labels if label in MISSING or WHOLE.match(label)]:
        other = "a missing one" if lost[0] in MISSING else "a number"
        problem = f"in a CSV file the label {truncate(lost[0])!r} would be read as {other}"
        raise DataError(f"{problem}: rename {format_names(lost)}, or use --csv, the list of doubts")
