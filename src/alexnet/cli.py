"""The command line: a command each parses, calls `api`, prints. torch is imported by the commands that need it."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from alexnet.errors import AlexNetError, Interrupted, printable, quoted
from alexnet.printed import (
    print_csv,
    print_json,
    print_problems,
    show_evaluation,
    show_explained,
    show_export,
    show_index,
    show_neighbours,
    show_predictions,
    show_problems,
    show_rate,
    show_study,
    show_summary,
)
from alexnet.progress import silent
from alexnet.use.studies import STUDIES

STARTED = time.monotonic()  # before torch is imported: what a person waits for

app = typer.Typer(
    name="alexnet",
    help="Train an image classifier on your own photos, see what it learned, predict with it.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
recipes_app = typer.Typer(no_args_is_help=True, help="How to train: the recipes inside.")
model_app = typer.Typer(no_args_is_help=True, help="Architectures: the variants inside.")
data_app = typer.Typer(no_args_is_help=True, help="Datasets: what is in them.")
search_app = typer.Typer(no_args_is_help=True, help="Nearest images: index folders, and look what is alike.")
app.add_typer(search_app, name="search")
app.add_typer(data_app, name="data")
app.add_typer(recipes_app, name="recipes")
app.add_typer(model_app, name="model")


class Split(StrEnum):
    """Names of the splits."""

    train = "train"
    val = "val"
    test = "test"


class Parallel(StrEnum):
    """What processes divide."""

    data = "data"
    towers = "towers"
    hybrid = "hybrid"


class Views(StrEnum):
    """Looks at each image."""

    one = "1"
    two = "2"
    ten = "10"


RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, as train leaves it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
DataRoot = Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where downloads lie.  [env: ALEXNET_DATA]")]
Device = Annotated[
    str | None, typer.Option(metavar="D", help="cpu, cuda, cuda:1, mps …  [default: the accelerator, if there is one]")
]
Threads = Annotated[int | None, typer.Option(min=1, metavar="N", help="CPU threads.  [default: all cores]")]
VariantName = Annotated[str, typer.Argument(metavar="VARIANT", help="A name of the list (alexnet model list).")]
Classes = Annotated[int | None, typer.Option(min=1, max=10**9, metavar="N", help="Outputs.  [default: the variant's own]")]


@app.callback()
def _common(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Options of every command; `main` reads --debug itself."""


@app.command()
def train(
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA", help="digits, cifar10, fashion-mnist, a folder, or a CSV or Parquet file.  [default: the recipe's]"
        ),
    ] = None,
    recipe: Annotated[str, typer.Option(metavar="NAME", help="A name (alexnet recipes list) or a TOML file.")] = "fast",
    variant: Annotated[str | None, typer.Option(metavar="NAME", help="The architecture (alexnet model list).")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="The run folder.  [default: runs/<data>-<recipe>-<date>-<time>]")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, metavar="N", help="Train this many epochs.")] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.01, metavar="M", help="Train until then, instead of by epochs.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(metavar="RUN|FILE|imagenet1k", help="Start from a run's features, or torchvision's ImageNet weights."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, metavar="N", help="Of first weights, order and augmentation.")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Go on with a run that was stopped.")] = None,
    find_rate: Annotated[
        bool, typer.Option("--find-rate", help="Train nothing: find the learning rate, and draw its curve.")
    ] = False,
    processes: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Processes of this machine that train together.  [default: one]")
    ] = None,
    parallel: Annotated[
        Parallel, typer.Option(help="What several processes divide: batches, the two towers, or batches and dense layers.")
    ] = Parallel.data,
    data_root: DataRoot = None,
    device: Device = None,
    threads: Threads = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe, such as optimizer.rate=0.02."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a network on DATA and leave a run folder that predicts.

    Examples: alexnet train photos/ · alexnet train cifar10 --minutes 10 · alexnet train --resume runs/photos · alexnet train
    photos/ --processes 2
    """
    if processes is not None and processes > 1 and not find_rate and "WORLD_SIZE" not in os.environ:
        from alexnet.training.launch import launch

        raise typer.Exit(launch(processes, sys.argv[1:]))
    if resume is not None:
        given = [data, variant, out, epochs, minutes, weights, seed, data_root, set_]
        if find_rate or any(value is not None for value in given):
            raise typer.BadParameter(
                "a resumed run keeps its recipe: give --resume RUN alone (with --device, --threads, --processes or --parallel)"
            )
        from alexnet import api

        run = api.resume(resume, device=device, threads=threads, parallel=parallel.value, started=STARTED)
    else:
        from alexnet import api
        from alexnet.recipe import settings_from

        flags = {
            "model.variant": variant,
            "train.minutes": minutes,
            "train.seed": seed,
            "data.root": None if data_root is None else str(data_root.expanduser().absolute()),
            **({} if epochs is None else {"train.epochs": epochs, "train.max_images": 0}),
        }
        settings = {**{key: value for key, value in flags.items() if value is not None}, **settings_from(set_ or ())}
        if find_rate:
            how: dict[str, Any] = {"device": device, "threads": threads, "weights": weights, "settings": settings}
            curve, figure = api.find_rate(data, recipe=recipe, out=out, **how)
            show_rate(curve.to_json() | {"figure": str(figure)}, as_json)
            return
        run = api.train(
            data,
            recipe=recipe,
            out=out,
            device=device,
            threads=threads,
            weights=weights,
            settings=settings,
            parallel=parallel.value,
            started=STARTED,
        )
    if silent():  # another process speaks
        return
    if as_json:
        print_json(run.summary)
    else:
        show_summary(run.summary)


@app.command()
def ablate(
    data: Annotated[
        str | None, typer.Argument(metavar="DATA", help="A dataset as for train.  [default: the study's, else the recipe's]")
    ] = None,
    study: Annotated[str | None, typer.Option(metavar="NAME", help=f"A claim: {', '.join(STUDIES)}.")] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=A,B,…", help="Or a setting and its values; several: every combination is trained."),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.01, metavar="M", help="For all trainings together.  [default: the recipe's epochs]")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, metavar="N", help="Trainings of each arm.  [default: 3]")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="The study's folder; alone, it is gone on with.  [default: in runs/]")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(metavar="NAME", help="A name or a TOML file.  [default: the study's, else fast]")
    ] = None,
    data_root: DataRoot = None,
    device: Device = None,
    threads: Threads = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe, in all arms.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train with one thing changed, over several seeds: what is it worth? A table with intervals and a figure.

    Examples: alexnet ablate --study pooling · alexnet ablate photos/ --vary optimizer.rate=0.01,0.001
    """
    if (study is None) == (not vary):
        given = [study, data, minutes, seeds, recipe, data_root, set_]
        if study is not None or out is None or any(value is not None for value in given):
            raise typer.BadParameter("say what to train: --study NAME or --vary KEY=A,B (or --out alone, to go on with it)")
    from alexnet import api
    from alexnet.recipe import settings_from

    root = {} if data_root is None else {"data.root": str(data_root.expanduser().absolute())}
    found = api.ablate(
        data,
        study=study,
        vary=vary or (),
        recipe=recipe,
        out=out,
        minutes=minutes,
        seeds=seeds or 3,
        settings={**root, **settings_from(set_ or ())},
        device=device,
        threads=threads,
    )
    if as_json:
        print_json(found)
    else:
        show_study(found)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN…", help="Run folders; all are compared with the first.")],
    as_json: AsJson = False,
) -> None:
    """Show runs side by side: their figures, and the settings in which they differ."""
    if len(runs) < 2:
        raise typer.BadParameter("name two runs or more")
    from alexnet import api
    from alexnet.use.compare import table

    found = api.compare(runs)
    if as_json:
        print_json(found)
    else:
        for line in table(found).splitlines():
            print(printable(line))


@app.command()
def evaluate(
    run: RunPath,
    data: Annotated[
        str | None, typer.Argument(metavar="DATA", help="A dataset as for train.  [default: the run's own]")
    ] = None,
    split: Annotated[
        Split | None, typer.Option(metavar="train|val|test", help="[default: test, else val; all of a DATA that is not split]")
    ] = None,
    views: Annotated[
        Views, typer.Option(metavar="1|2|10", help="Looks at each image: with its mirror image; ten crops, as in 2012.")
    ] = Views.one,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Measure a run on its own dataset or on another one."""
    from alexnet import api

    found = api.load(run, device).evaluate(data, split.value if split else None, int(views.value)).to_json()
    if as_json:
        print_json(found)
    else:
        show_evaluation(found)


@app.command()
def predict(
    run: RunPath,
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE|FOLDER|GLOB|-…", help="What to look at; - reads paths from standard input, one a line."),
    ],
    top: Annotated[int, typer.Option(min=1, metavar="N", help="Labels for each image.")] = 5,
    as_json: AsJson = False,
    jsonl: Annotated[bool, typer.Option("--jsonl", help="Print a JSON object a line, as they come.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV: image, rank, label, probability, error.")] = False,
    device: Device = None,
) -> None:
    """Name what is on images, best label first; exit code 1 if one of them was unreadable."""
    if sum((as_json, jsonl, as_csv)) > 1:
        raise typer.BadParameter("choose one of --json, --jsonl and --csv")
    from alexnet import api

    names = _names(images)
    answers = _counted(api.load(run, device).stream(names, top))
    if as_json:
        print_json(list(answers.items))
    elif jsonl:
        for answer in answers.items:
            print(json.dumps(answer, ensure_ascii=False), flush=True)
    elif as_csv:
        print_csv(answers.items)
    else:
        show_predictions(answers.items)
    _fail_if_unread(answers)


@app.command()
def explain(
    run: RunPath,
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE|FOLDER|GLOB|-…", help="What to look at; - reads paths from standard input, one a line."),
    ],
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where the pictures go.  [default: RUN/explain]")] = None,
    arrays: Annotated[bool, typer.Option("--arrays", help="Write a NumPy archive (.npz) for each image, too.")] = False,
    as_json: AsJson = False,
    device: Device = None,
) -> None:
    """Draw why the network says what it says: what it looks at, what it needs to see, what its layers show.

    Example: alexnet explain runs/photos cat.jpg
    """
    from alexnet import api
    from alexnet.progress import track

    names = _names(images)
    answers = _counted(track(api.load(run, device).explain(names, out, arrays), "Explaining"))
    if as_json:
        print_json(list(answers.items))
    else:
        show_explained(answers.items)
    _fail_if_unread(answers)


@app.command()
def export(
    run: RunPath,
    bare: Annotated[
        bool, typer.Option("--bare", help="The network alone: batches N 3 I I, float32, normalised in; logits out.")
    ] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="In whole numbers of 8 bits: a quarter as large; what it costs is measured.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="[default: RUN/export/model.onnx, model-bare.onnx, model-int8.onnx …]")
    ] = None,
    as_json: AsJson = False,
    device: Device = None,
) -> None:
    """Write an ONNX file, which needs no PyTorch: an RGB image of any size in (H W 3, uint8), calibrated probabilities out.

    Labels, in JSON, and preprocessing are in its metadata. It is run in onnxruntime and compared before it is called done.
    """
    from alexnet import api

    found = api.load(run, device).export(out, bare=bare, int8=int8)
    if as_json:
        print_json(found)
    else:
        show_export(found)


@app.command()
def serve(
    run: RunPath,
    host: Annotated[str, typer.Option(metavar="NAME", help="Where to listen; 0.0.0.0 is for all who reach it.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, metavar="N", help="0: any that is free.")] = 8000,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Answer over HTTP: a page, POST /predict, POST /explain; ALEXNET_API_KEY in the environment is then asked for.

    Example: alexnet serve runs/photos, then curl -F images=@cat.jpg http://127.0.0.1:8000/predict
    """
    from alexnet import api

    api.load(run, device).serve(host, port, threads)


@app.command()
def report(run: RunPath, device: Device = None) -> None:
    """Write RUN/report.html anew and print its path."""
    from alexnet import api

    print(api.load(run, device).report())


@app.command("import-keras")
def import_keras(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What Keras saved: .keras, .weights.h5 or .h5.")],
    variant: Annotated[str, typer.Option(metavar="NAME", help="The architecture (alexnet model list).")],
    out: Annotated[Path, typer.Option(metavar="RUN", help="The run folder, new.")],
    classes: Annotated[
        str | None, typer.Option(metavar="A,B,…", help="Names of the outputs.  [default: the recipe's dataset's, else 0, 1, …]")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="How images were prepared.  [default: the recipe of the variant's name, else fast]"),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe, such as images.stored=256."),
    ] = None,
) -> None:
    """Make a run folder, which predicts, of a network that Keras trained.

    Example: alexnet import-keras model.keras --variant cats-dogs --classes cat,dog --out runs/keras
    """
    from alexnet.recipe import settings_from
    from alexnet.use import keras

    names = None if classes is None else [name.strip() for name in classes.split(",")]
    run = keras.import_keras(file, variant=variant, classes=names, recipe=recipe, settings=settings_from(set_ or ()), out=out)
    print(f"{'predict':10}  alexnet predict {quoted(run)} IMAGE…")


@search_app.command("index")
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
    """Index the images in FOLDER; again with another one, or the same: what is new or has changed is added.

    Example: alexnet search index runs/photos photos/
    """
    from alexnet import api

    found = api.load(run, device).index(folder, out, bits)
    show_index(found, run, f" --index {quoted(found['index'])}" if out else "")


@search_app.command("query")
def search_query(
    run: RunPath,
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE|FOLDER|GLOB|-…", help="What to look for; - reads paths from standard input, one a line."),
    ],
    top: Annotated[int, typer.Option(min=1, metavar="N", help="Images for each.")] = 10,
    binary: Annotated[bool, typer.Option("--binary", help="Compare short codes: faster, a little less exact.")] = False,
    index: Annotated[Path | None, typer.Option(metavar="INDEX", help="Where to look.  [default: RUN/search]")] = None,
    out: Annotated[Path | None, typer.Option(metavar="PNG", help="Draw a contact sheet, a row for each IMAGE.")] = None,
    as_json: AsJson = False,
    device: Device = None,
) -> None:
    """Find the images most alike, nearest first; exit code 1 if one of IMAGE… was unreadable.

    Example: alexnet search query runs/photos cat.jpg --out alike.png
    """
    from alexnet import api

    answers = _counted(api.load(run, device).search(_names(images), top, binary=binary, index=index, out=out))
    if as_json:
        print_json(list(answers.items))
    else:
        show_neighbours(answers.items)
        if out is not None:
            print(out)
    _fail_if_unread(answers)


@data_app.command("check")
def data_check(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="digits, cifar10, fashion-mnist, a folder, or a CSV or Parquet file.")
    ],
    data_root: DataRoot = None,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV: image, kind, detail.")] = False,
) -> None:
    """Look at every image of DATA: what is damaged, odd, there twice, in two splits; nothing is changed."""
    if as_json and as_csv:
        raise typer.BadParameter("choose one of --json and --csv")
    from alexnet.data.check import check
    from alexnet.data.sources import open_table

    found = check(open_table(data, data_root)).to_json()
    if as_json:
        print_json(found)
    elif as_csv:
        print_problems(found)
    else:
        show_problems(found)


@data_app.command("show")
def data_show(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="digits, cifar10, fashion-mnist, a folder, or a CSV or Parquet file.")
    ],
    recipe: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Show what this recipe's random changes make of the images, beside them."),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="PNG", help="The picture.  [default: <data>.png]")] = None,
    data_root: DataRoot = None,
) -> None:
    """Draw samples of DATA with their names; with --recipe, images before and after its random changes.

    Examples: alexnet data show photos/ · alexnet data show photos/ --recipe cats-dogs
    """
    from alexnet.data.sources import open_table
    from alexnet.recipe import load
    from alexnet.use import show

    table = open_table(data, data_root)
    path = out or Path(f"{table.name}{f'-{Path(recipe).stem}' if recipe else ''}.png")
    if recipe is None:
        show.show_samples(table, path)
    else:
        show.show_changes(table, load(recipe), path)
    print(path)


@recipes_app.command("list")
def recipes_list() -> None:
    """List the recipes inside, with what each is for."""
    from alexnet import recipe

    for name in recipe.names():
        print(recipe.read_text(name).partition("\n")[0].lstrip("# "))


@recipes_app.command("show")
def recipes_show(name: Annotated[str, typer.Argument(metavar="NAME", help="A name of the list, or a TOML file.")]) -> None:
    """Print a recipe: a file to copy and to change."""
    from alexnet import recipe

    print(recipe.read_text(name), end="")


@model_app.command("list")
def model_list() -> None:
    """List the variants inside, with the text that each comes from."""
    from alexnet.network.variants import ROWS

    for row in ROWS:
        print(f"{row.name:12} {row.input_size}x{row.input_size}, {row.classes} classes: {row.source}")


@model_app.command("summary")
def model_summary(name: VariantName, classes: Classes = None, as_json: AsJson = False) -> None:
    """Print a variant layer by layer: shapes, parameters, and how the sizes come about."""
    from alexnet.network.summary import summarize

    summary = summarize(name, classes)
    if as_json:
        print_json(summary.to_json())
    else:
        print(summary.table())


@model_app.command("plot")
def model_plot(
    name: VariantName,
    classes: Classes = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw this .svg or .png alone.  [default: VARIANT.svg and VARIANT.png]")
    ] = None,
) -> None:
    """Draw a variant, maps as boxes and towers in rows, and print the paths of the drawings."""
    from alexnet.network import diagram
    from alexnet.network.summary import summarize

    summary = summarize(name, classes)
    for path in [out] if out else [Path(name + suffix) for suffix in diagram.FORMATS]:
        diagram.save(summary, path)
        print(path)


class _counted:
    """Counts answers and errors of an iterable as it is used."""

    def __init__(self, answers: Iterable[dict[str, Any]]) -> None:
        self.total = self.errors = 0
        self.items = self._count(answers)

    def _count(self, answers: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for answer in answers:
            self.total += 1
            self.errors += "error" in answer
            yield answer


def _fail_if_unread(answers: _counted) -> None:
    if answers.errors:
        print(f"{answers.errors} of {answers.total} images could not be read", file=sys.stderr)
        raise typer.Exit(1)


def _names(images: list[str]) -> list[str]:
    """Replace - by the lines of standard input."""
    return [name for given in images for name in (_lines(sys.stdin) if given == "-" else [given])]


def _lines(stream: Iterable[str]) -> list[str]:
    return [name for line in stream if (name := line.rstrip("\r\n"))]


def main() -> None:
    """Run the command line; errors that a user can mend are one line and exit code 1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files need not be UTF-8; in JSON such an escape is right
            stream.reconfigure(errors="backslashreplace")
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    if arguments == ["--version"]:
        from importlib.metadata import version

        print(f"alexnet {version('alexnet')}")
        return
    try:
        app(args=arguments, prog_name="alexnet")
    except AlexNetError as error:
        if debug:
            raise
        if not silent():  # else the first of the processes that train together has said it
            print(printable(f"alexnet: {error}"), file=sys.stderr)
        sys.exit(error.code if isinstance(error, Interrupted) else 1)
    except KeyboardInterrupt:
        print("alexnet: interrupted", file=sys.stderr)
        sys.exit(130)
