"""Arguments and options shared by several commands."""

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from alexnet.cli.completion import datasets, recipes, variants


def option(metavar: str, text: str, **settings: Any) -> Any:
    """Return an option whose value is shown as `metavar`."""
    return typer.Option(metavar=metavar, help=text, **settings)


def flag(name: str, text: str, *others: str) -> Any:
    """Return the switch `name`, which may have aliases."""
    return typer.Option(name, *others, help=text)


DATASETS = "Folder, CSV, Parquet or JSON lines file, or digits, cifar10, fashion-mnist, imagenette, cats-dogs, imagenet."


def data_argument(text: str = DATASETS, default: str = "") -> Any:
    """Return the argument DATA."""
    help_text = f"{text}  [default: {default}]" if default else text
    return typer.Argument(metavar="DATA", help=help_text, autocompletion=datasets)


def images_argument(purpose: str) -> Any:
    """Return the argument IMAGE…; its help begins with `purpose`."""
    stdin = "or - to read names from standard input, separated by newlines or NUL"
    text = f"{purpose}: files, folders, patterns such as 'photos/*.jpg', {stdin}."
    return typer.Argument(metavar="IMAGE…", help=text)


def recipe_option(text: str) -> Any:
    """Return the option --recipe."""
    return option("NAME", text, autocompletion=recipes)


def set_option(text: str) -> Any:
    """Return the option --set."""
    return typer.Option("--set", metavar="KEY=VALUE", help=f"{text}; can be repeated.")


TABLE_OPTIONS = {
    "image_column": option("NAME", "Column of a table: images.  [default: image, or a common name for it]"),
    "label_column": option("NAME", "Column of a table: labels.  [default: label, or a common name for it]"),
    "split_column": option("NAME", "Column of a table: splits.  [default: split, or a common name for it]"),
    "group_column": option("NAME", "Column of a table: groups, such as patients, that stay in one split.  [default: group]"),
    "label_names": option("A,B,…|FILE", "Names of the labels 0, 1, ….  [default: labels.txt or classes.txt beside the table]"),
}


def table_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add `TABLE_OPTIONS` to a command, whose argument `table` gets those that are given, as recipe keys."""

    @wraps(command)
    def with_options(**values: Any) -> None:
        given = {f"data.{name}": values.pop(name) for name in TABLE_OPTIONS}
        command(**values, table={key: value for key, value in given.items() if value is not None})

    own = inspect.signature(command).parameters.values()
    kind = inspect.Parameter.KEYWORD_ONLY
    added = [
        inspect.Parameter(name, kind, default=None, annotation=Annotated[str | None, settings])
        for name, settings in TABLE_OPTIONS.items()
    ]
    parameters = [*(p.replace(kind=kind) for p in own if p.name != "table"), *added]
    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # Typer reads it
    return with_options


RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, or weights saved on the way: RUN@epoch3, RUN@512.")]
Overwrite = Annotated[
    bool, flag("--overwrite", "Overwrite files that this program did not make. Its own are always overwritten.")
]
AsJson = Annotated[bool, flag("--json", "Print one JSON document on standard output.")]
DataRoot = Annotated[Path | None, option("FOLDER", "Folder of downloaded datasets.  [env: ALEXNET_DATA]")]
Device = Annotated[
    str | None,
    option(
        "D", "cpu, cuda, cuda:1 or mps.  [default: an accelerator if available]", autocompletion=lambda: ["cpu", "cuda", "mps"]
    ),
]
Views = Annotated[
    Literal["1", "2", "10"] | None,
    option(
        "N",
        "Views averaged per image: 1; 2, with its mirror image; 10, with corners and centre, as in 2012."
        "  [default: as trained]",
    ),
]


def count(views: str | None) -> int | None:
    """Return `Views` as a number, or None."""
    return int(views) if views else None


Threads = Annotated[int | None, option("N", "Number of CPU threads.  [default: one per core]", min=1)]
Classes = Annotated[int | None, option("N", "Number of classes.  [default: the variant's]", min=1, max=10**9)]
VariantName = Annotated[
    str, typer.Argument(metavar="VARIANT", help="Architecture (alexnet model list).", autocompletion=variants)
]
