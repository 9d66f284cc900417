"""Arguments and options shared by several commands, and their shell completion."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


class Split(StrEnum):
    """Names of the splits."""

    train = "train"
    val = "val"
    test = "test"


class Parallel(StrEnum):
    """Ways to train on several processes."""

    data = "data"
    towers = "towers"
    hybrid = "hybrid"


class Views(StrEnum):
    """Views per image."""

    one = "1"
    two = "2"
    ten = "10"


def datasets(incomplete: str) -> list[str]:
    """Complete the names of built-in datasets, and paths."""
    from alexnet.data.builtin import NAMES

    return _or_paths(NAMES, incomplete)


def recipes(incomplete: str) -> list[str]:
    """Complete the names of built-in recipes, and paths."""
    from alexnet import recipe

    return _or_paths(recipe.names(), incomplete)


def weights(incomplete: str) -> list[str]:
    """Complete `imagenet1k`, and paths."""
    return _or_paths(["imagenet1k"], incomplete)


def variants() -> list[str]:
    """Return the names of the built-in variants."""
    from alexnet.network.variants import VARIANTS

    return list(VARIANTS)


def devices() -> list[str]:
    """Return the types of devices."""
    return ["cpu", "cuda", "mps"]


def _or_paths(names: Iterable[str], incomplete: str) -> list[str]:
    """Return the names and paths that start with `incomplete`; nothing if no name does, as the shell then completes paths."""
    matches = [name for name in names if name.startswith(incomplete)]
    paths = (path for path in sorted(Path().glob(f"{incomplete}*")) if path.name[0] != ".") if matches else ()
    return [*matches, *(f"{path}/" if path.is_dir() else str(path) for path in paths)]


def data_argument(text: str = "Folder, CSV or Parquet file, or digits, cifar10, fashion-mnist.", default: str = "") -> Any:
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
    return typer.Option(metavar="NAME", help=text, autocompletion=recipes)


def set_option(text: str) -> Any:
    """Return the option --set."""
    return typer.Option("--set", metavar="KEY=VALUE", help=f"{text}; can be repeated.")


RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Overwrite files that this program did not make. Its own are always overwritten."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
DataRoot = Annotated[Path | None, typer.Option(metavar="FOLDER", help="Folder of downloaded datasets.  [env: ALEXNET_DATA]")]
Device = Annotated[
    str | None,
    typer.Option(metavar="D", help="cpu, cuda, cuda:1 or mps.  [default: an accelerator if available]", autocompletion=devices),
]
Threads = Annotated[int | None, typer.Option(min=1, metavar="N", help="Number of CPU threads.  [default: one per core]")]
Variant = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Architecture (alexnet model list).  [default: the recipe's]", autocompletion=variants),
]
VariantName = Annotated[
    str, typer.Argument(metavar="VARIANT", help="Architecture (alexnet model list).", autocompletion=variants)
]
Classes = Annotated[
    int | None, typer.Option(min=1, max=10**9, metavar="N", help="Number of classes.  [default: the variant's]")
]
