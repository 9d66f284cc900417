"""Commands that inspect runs: evaluate, compare, explain, report."""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

import alexnet
from alexnet.cli.app import app
from alexnet.cli.help import LOOK, Command
from alexnet.cli.images import image_names, print_results
from alexnet.cli.options import (
    AsJson,
    Device,
    Overwrite,
    RunPath,
    Views,
    count,
    data_argument,
    flag,
    images_argument,
    option,
    table_options,
)
from alexnet.cli.output import print_comparison, print_evaluation, print_explanations, print_result
from alexnet.progress import track

command = partial(app.command, cls=Command, rich_help_panel=LOOK)


@command()
@table_options
def evaluate(
    run: RunPath,
    table: dict[str, str],
    data: Annotated[str | None, data_argument("Dataset, as for train.", default="the run's own")] = None,
    split: Annotated[
        Literal["train", "val", "test"] | None,
        option("NAME", "train, val or test.  [default: test, else val; all images if DATA has no splits]"),
    ] = None,
    views: Views = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a run on its own dataset or on another.

    Top-1 is the fraction of images whose label comes first, with its 95 % interval; top-5, for more than five classes, the
    fraction whose label is among the first five. A row for each class follows.

    Examples:
        alexnet evaluate runs/photos
        alexnet evaluate runs/photos other-photos/ --views 10
        alexnet evaluate runs/photos --split val --json
    """
    print_result(alexnet.load(run, device).evaluate(data, split, count(views), table).to_json(), print_evaluation, as_json)


@command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN…", help="Run folders, compared with the first.")],
    as_json: AsJson = False,
) -> None:
    """Compare runs: their metrics, and the settings that differ.

    Examples:
        alexnet compare runs/photos runs/finetuned
    """
    if len(runs) < 2:
        raise typer.BadParameter("name two runs or more")
    print_result(alexnet.compare(runs), print_comparison, as_json)


@command()
def explain(
    run: RunPath,
    images: Annotated[list[str], images_argument("Images to explain")],
    out: Annotated[Path | None, option("FOLDER", "Folder for the figures.  [default: RUN/explain]")] = None,
    arrays: Annotated[bool, flag("--arrays", "Also write a NumPy archive (.npz) per image.")] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    device: Device = None,
) -> None:
    """Explain predictions.

    Draws a figure per image: Grad-CAM, occlusion, integrated gradients and feature maps. Exit code 1 if an image could not be
    read. Requires captum (pip install captum).

    Examples:
        alexnet explain runs/photos cat.jpg
        alexnet explain runs/photos 'photos/cat/1*.jpg' --out why/ --arrays
    """
    results = alexnet.load(run, device).explain(image_names(images), out, arrays, overwrite)
    print_results(track(results, "Explaining"), print_explanations, as_json)


@command()
def report(run: RunPath, device: Device = None) -> None:
    """Rewrite RUN/report.html and print its path.

    Examples:
        alexnet report runs/photos
    """
    print(alexnet.load(run, device).report())
