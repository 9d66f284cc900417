"""Commands that use runs: predict, search, export, serve."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from alexnet.cli.answers import Counted, fail_if_unread, names_of
from alexnet.cli.app import app, group
from alexnet.cli.help import USE, Command
from alexnet.cli.options import AsJson, Device, Overwrite, RunPath, Threads, images_argument
from alexnet.cli.output import print_csv, print_json, show_export, show_index, show_neighbours, show_predictions
from alexnet.errors import shell_quote

command = partial(app.command, cls=Command, rich_help_panel=USE)
search = group(
    "search",
    USE,
    """Find images that look alike: index a folder, then query.

    Examples:
        alexnet search index runs/photos photos/
        alexnet search query runs/photos cat.jpg
    """,
)


@command()
def predict(
    run: RunPath,
    images: Annotated[list[str], images_argument("What to name")],
    top: Annotated[int, typer.Option(min=1, metavar="N", help="Labels for each image; all of them, if there are fewer.")] = 5,
    as_json: AsJson = False,
    jsonl: Annotated[bool, typer.Option("--jsonl", help="Print a JSON object a line, as they come.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV: image, rank, label, probability, error.")] = False,
    device: Device = None,
) -> None:
    """Say what is on images, the most probable label first.

    Probabilities are calibrated on the run's validation images. Exit code 1 if an image could not be read; the others are
    answered.

    Examples:
        alexnet predict runs/photos cat.jpg dog.jpg
        alexnet predict runs/photos folder/ --top 1 --csv > answers.csv
        find photos -name '*.jpg' | alexnet predict runs/photos - --jsonl
    """
    if sum((as_json, jsonl, as_csv)) > 1:
        raise typer.BadParameter("choose one of --json, --jsonl and --csv")
    from alexnet import api

    answers = Counted(api.load(run, device).stream(names_of(images), top))
    if as_json:
        print_json(list(answers))
    elif jsonl:
        for answer in answers:
            print(json.dumps(answer, ensure_ascii=False), flush=True)
    elif as_csv:
        print_csv(answers)
    else:
        show_predictions(answers)
    fail_if_unread(answers)


@command()
def export(
    run: RunPath,
    bare: Annotated[
        bool, typer.Option("--bare", help="The network alone: batches N 3 I I, float32, normalised in; logits out.")
    ] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="In whole numbers of 8 bits: a quarter as large; what that costs is measured.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The file.  [default: model.onnx, model-bare.onnx … in RUN/export]"),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    device: Device = None,
) -> None:
    """Write the network as an ONNX file, which needs no PyTorch.

    An RGB image of any size goes in (H W 3, uint8), calibrated probabilities come out; labels, in JSON, and preprocessing are
    in its metadata. It is run in onnxruntime and compared before it is called done. It needs
    onnx, onnxscript and onnxruntime (pip install them).

    Examples:
        alexnet export runs/photos
        alexnet export runs/photos --int8 --out small.onnx
    """
    from alexnet import api

    found = api.load(run, device).export(out, bare=bare, int8=int8, overwrite=overwrite)
    if as_json:
        print_json(found)
    else:
        show_export(found)


@command()
def serve(
    run: RunPath,
    host: Annotated[
        str, typer.Option(metavar="NAME", help="Where to listen; 0.0.0.0 lets all machines in that reach this one.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, metavar="N", help="0 takes any that is free.")] = 8000,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Answer over HTTP: a page for people, and an interface.

    Images are sent to /predict and /explain with POST. Who asks must know what ALEXNET_API_KEY in the environment says, if it
    is set. Ctrl-C ends it. It needs fastapi, uvicorn, python-multipart and captum (pip install them).

    Examples:
        alexnet serve runs/photos
        curl -F images=@cat.jpg http://127.0.0.1:8000/predict
    """
    from alexnet import api

    api.load(run, device).serve(host, port, threads)


@search.command("index", cls=Command)
def search_index(
    run: RunPath,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Images to be found, in it and in folders inside.")],
    out: Annotated[
        Path | None, typer.Option(metavar="INDEX", help="The index, new or to add to.  [default: RUN/search]")
    ] = None,
    bits: Annotated[
        int | None, typer.Option(min=8, metavar="N", help="Length of short codes, a multiple of 8.  [default: 128]")
    ] = None,
    device: Device = None,
) -> None:
    """Index the images in FOLDER, to be found by query.

    Again with the same folder, or with another one: what is new or has changed is added, what is gone is left out. It needs
    faiss (pip install faiss-cpu).

    Examples:
        alexnet search index runs/photos photos/
        alexnet search index runs/photos more-photos/
    """
    from alexnet import api

    found = api.load(run, device).index(folder, out, bits)
    show_index(found, run, f" --index {shell_quote(found['index'])}" if out else "")


@search.command("query", cls=Command)
def search_query(
    run: RunPath,
    images: Annotated[list[str], images_argument("What to look for")],
    top: Annotated[int, typer.Option(min=1, metavar="N", help="Images to find for each.")] = 10,
    binary: Annotated[bool, typer.Option("--binary", help="Compare short codes: faster, a little less exact.")] = False,
    index: Annotated[Path | None, typer.Option(metavar="INDEX", help="Where to look.  [default: RUN/search]")] = None,
    out: Annotated[Path | None, typer.Option(metavar="PNG", help="Draw a contact sheet, a row for each IMAGE.")] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    device: Device = None,
) -> None:
    """Find the images most alike, nearest first.

    The numbers are distances: between codes, or with --binary the bits in which short codes differ. Exit code 1 if an image
    could not be read.

    Examples:
        alexnet search query runs/photos cat.jpg
        alexnet search query runs/photos cat.jpg --top 5 --out alike.png
    """
    from alexnet import api

    found = api.load(run, device).search(names_of(images), top, binary=binary, index=index, out=out, overwrite=overwrite)
    answers = Counted(found)
    if as_json:
        print_json(list(answers))
    else:
        show_neighbours(answers)
        if out is not None:
            print(out)
    fail_if_unread(answers)
