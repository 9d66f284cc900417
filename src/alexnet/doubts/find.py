"""Images whose labels are doubtful, from the folder of a cross-validation; as a list, as CSV and as a page."""

import csv
import io
from pathlib import Path
from typing import Any

from alexnet.data.sources import open_table
from alexnet.data.table import Table
from alexnet.doubts.confident import doubtful
from alexnet.doubts.page import write_page
from alexnet.errors import DataError, RunError, format_names, shell_quote, truncate
from alexnet.files import refuse_overwrite, write_output
from alexnet.folds.cross_validate import FoldsFolder, Plan
from alexnet.folds.predictions import Predictions
from alexnet.run import RunFolder, read_model, read_recipe

COLUMNS = ("image", "label", "likely", "label_probability", "likely_probability")


def find_doubts(
    run: str | Path, *, csv: str | Path | None = None, page: str | Path | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Find images whose labels are probably wrong, by confident learning (Northcutt, Jiang and Chuang 2021).

    Args:
        run: folder of `cross_validate`, or of `alexnet train --folds`.
        csv: also write the list to this CSV file.
        page: also write an HTML page to this file, to decide on each image; it makes a CSV file of the whole dataset, with the
            corrected labels, that `train` takes. Images are not changed.
        overwrite: replace `csv` and `page` if these files exist.

    Returns:
        `{"run", "images", "doubts": [{"image", "label", "likely", "label_probability", "likely_probability"}], "csv", "page"}`:
        most probably wrong first. `images` is the number of images that were predicted, `label` the given and `likely` the most
        probable label, each with its probability, from 0 to 1, by a network that did not see the image. `csv` and `page` are
        the files written, or None.

    Raises:
        RunError: `run` is not the folder of finished folds, is damaged, or a file exists or cannot be written.
        DataError: for `page`, the dataset has changed since, or its images are not files.
    """
    folder = _open(Path(run))
    for path in (csv, page):
        if path is not None:
            refuse_overwrite(Path(path), overwrite)
    predictions = Predictions.load(folder.arrays)
    rows = doubtful(predictions.targets, predictions.probabilities)
    best = predictions.predicted
    doubts = [
        {
            "image": predictions.images[row],
            "label": predictions.labels[predictions.targets[row]],
            "likely": predictions.labels[best[row]],
            "label_probability": float(predictions.probabilities[row, predictions.targets[row]]),
            "likely_probability": float(predictions.probabilities[row, best[row]]),
        }
        for row in rows
    ]
    if csv is not None:
        text = _csv(doubts)
        write_output(Path(csv), lambda part: part.write_text(text, "utf-8", "backslashreplace", "\n"), overwrite)
    if page is not None:
        table = _dataset(folder, predictions)
        write_page(Path(page), table, doubts, len(predictions.images), overwrite)
    files = {name: None if path is None else str(path) for name, path in (("csv", csv), ("page", page))}
    return {"run": str(folder.path), "images": len(predictions.images), "doubts": doubts, **files}


def _open(path: Path) -> FoldsFolder:
    folder, ordinary = FoldsFolder(path), RunFolder(path)
    if folder.results.exists():
        return folder
    if folder.plan.exists():
        raise RunError(f"{path} has folds that are not trained yet: repeat the command that began them")
    if ordinary.recipe.exists() or ordinary.config.exists():
        data = read_recipe(ordinary).data.dataset if ordinary.recipe.exists() else "DATA"
        advice = f"predict every image by one that did not: alexnet train {shell_quote(data)} --folds 5"
        raise RunError(f"{path} is one network, which has seen the labels it would have to doubt; {advice}")
    raise RunError(f"no folds in {path}: alexnet train DATA --folds 5 --out {shell_quote(path)} makes them")


def _dataset(folder: FoldsFolder, predictions: Predictions) -> Table:
    """Open the dataset of the folds; its images and labels must be those that were predicted."""
    settings = read_model(Plan, folder.plan).recipe.data.model_copy(update={"none_label": ""})  # counterexamples are listed too
    table = open_table(settings.dataset, settings.root, settings=settings)
    labels = {image: table.labels[target] for image, target in zip(table.images, table.targets, strict=True)}
    given = zip(predictions.images, predictions.targets, strict=True)
    if changed := [image for image, target in given if labels.get(image) != predictions.labels[target]]:
        what = f"{format_names(changed, 3)} {'is' if len(changed) == 1 else 'are'} missing or labelled otherwise"
        raise DataError(f"{truncate(settings.dataset)} has changed since its folds were trained: {what}; train them again")
    return table


def _csv(doubts: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for doubt in doubts:
        writer.writerow([f"{doubt[name]:.6f}" if name.endswith("probability") else doubt[name] for name in COLUMNS])
    return text.getvalue()
