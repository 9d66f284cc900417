"""Commands that make runs: train, ablate, import-keras."""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from alexnet.ablation.studies import STUDIES
from alexnet.cli.app import app
from alexnet.cli.help import MAKE, Command
from alexnet.cli.options import (
    AsJson,
    DataRoot,
    Device,
    Parallel,
    Threads,
    Variant,
    data_argument,
    recipe_option,
    set_option,
    variants,
    weights,
)
from alexnet.cli.output import print_json, show_rate, show_study, show_summary
from alexnet.errors import shell_quote
from alexnet.files import expanded
from alexnet.progress import silent

STARTED = time.monotonic()  # before torch is imported: what a person waits for

command = partial(app.command, cls=Command, rich_help_panel=MAKE)

# Options of train alone
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="RUN|FILE",
        help="Start from what another network learned: a run, whose variant is taken too; a file in torchvision's layout; or "
        "imagenet1k, torchvision's own, which is fetched (both want --variant owt).",
        autocompletion=weights,
    ),
]
Epochs = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Go through the training images so many times.  [default: the recipe's]")
]
Minutes = Annotated[
    float | None,
    typer.Option(
        min=0.01,
        metavar="M",
        help="Instead of --epochs: be done M minutes after the command's start, validation and test included; it trains "
        "as many epochs as fit.",
    ),
]
Out = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="The run folder, new.  [default: runs/<data>-<recipe>-<date>-<time>]")
]
Seed = Annotated[
    int | None,
    typer.Option(min=0, metavar="N", help="For first weights, order and augmentation.  [default: the recipe's]"),
]
Resume = Annotated[
    Path | None,
    typer.Option(
        metavar="RUN",
        help="Go on with a run that was stopped. It keeps its recipe: beside this only --device, --threads, --processes, "
        "--parallel and --json can be given.",
    ),
]
FindRate = Annotated[
    bool,
    typer.Option(
        "--find-rate",
        help="Train nothing: find the learning rate in a hundred steps, and draw its curve into FOLDER-rate.png, where FOLDER "
        "is what --out says.",
    ),
]
Processes = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Processes of this machine that train together.  [default: 1]")
]
Divided = Annotated[
    Parallel,
    typer.Option(
        metavar="KIND",
        help="What they divide: data (each batch), towers (one each), or hybrid (each batch, but dense layers by units).",
    ),
]


@command()
def train(
    data: Annotated[str | None, data_argument(default="the recipe's")] = None,
    recipe: Annotated[
        str | None, recipe_option("How to train: a name (alexnet recipes list) or a TOML file.  [default: fast]")
    ] = None,
    variant: Variant = None,
    weights: Weights = None,
    epochs: Epochs = None,
    minutes: Minutes = None,
    out: Out = None,
    seed: Seed = None,
    set_: Annotated[list[str] | None, set_option("Change a key of the recipe, such as optimizer.lr=0.02")] = None,
    resume: Resume = None,
    find_rate: FindRate = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="With --find-rate: replace FOLDER-rate.png whoever made it. A run is never replaced."),
    ] = False,
    processes: Processes = None,
    parallel: Divided = Parallel.data,
    data_root: DataRoot = None,
    device: Device = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Train a network on DATA, which leaves a run folder.

    DATA is a folder with a folder for each class, or with train/, val/ and test/ of such folders; a folder of files such as
    cat.1.jpg; a CSV or Parquet file with the columns image and label; or a name.

    Examples:
        alexnet train photos/
        alexnet train photos/ --minutes 15 --out runs/photos
        alexnet train cifar10 --recipe cifar10 --set optimizer.lr=0.02
        alexnet train photos/ --recipe finetune --weights runs/photos
        alexnet train photos/ --find-rate
        alexnet train photos/ --processes 2
        alexnet train --resume runs/photos
    """
    if processes is not None and processes > 1 and not find_rate and "WORLD_SIZE" not in os.environ:
        from alexnet.training.launch import launch

        raise typer.Exit(launch(processes, sys.argv[1:]))
    if overwrite and not find_rate:
        raise typer.BadParameter("--overwrite goes with --find-rate alone: a run is never replaced, name another --out")
    from alexnet import api

    where: dict[str, Any] = {"device": device, "threads": threads}
    if resume is not None:
        given = [data, recipe, variant, weights, epochs, minutes, out, seed, set_, data_root]
        if find_rate or any(value is not None for value in given):
            raise typer.BadParameter(
                "a resumed run keeps its recipe: give --resume RUN alone (with --device, --threads, --processes or "
                "--parallel), or, to train more, start a new run from it: alexnet train DATA --weights RUN --epochs N"
            )
        run = api.resume(resume, **where, parallel=parallel.value, started=STARTED)
    else:
        if epochs is not None and minutes is not None:
            raise typer.BadParameter("give --epochs or --minutes: by the clock it trains as many epochs as fit")
        length = {} if epochs is None else {"train.epochs": epochs, "train.max_images": 0, "train.minutes": None}
        flags = {"model.variant": variant, "train.minutes": minutes, "train.seed": seed}
        settings = {**length, **_settings(flags, data_root, set_)}
        how: dict[str, Any] = {"recipe": recipe or "fast", "out": out, "weights": weights, "settings": settings, **where}
        if find_rate:
            curve, figure = api.find_rate(data, **how, overwrite=overwrite)
            show_rate(curve.to_json() | {"figure": str(figure)}, as_json)
            return
        run = api.train(data, **how, parallel=parallel.value, started=STARTED)
    if silent():  # another process speaks
        return
    if as_json:
        print_json(run.summary)
    else:
        show_summary(run.summary)


def _settings(flags: dict[str, Any], data_root: Path | None, changes: list[str] | None) -> dict[str, Any]:
    """Return the recipe's keys that options change, but for those not given; what --set says counts most."""
    from alexnet.recipe import settings_from

    root = None if data_root is None else str(expanded(data_root).absolute())
    given = {key: value for key, value in {**flags, "data.root": root}.items() if value is not None}
    return {**given, **settings_from(changes or ())}


@command()
def ablate(
    data: Annotated[str | None, data_argument("A dataset as for train.", default="the study's, else the recipe's")] = None,
    study: Annotated[
        str | None,
        typer.Option(metavar="NAME", help=f"A claim to look at: {', '.join(STUDIES)}.", autocompletion=lambda: list(STUDIES)),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=A,B,…",
            help="Or a key of the recipe and its values; given again, every combination of values is trained.",
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.01, metavar="M", help="Time for all trainings together.  [default: each takes the recipe's epochs]"),
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, metavar="N", help="Trainings of each arm.  [default: 3]")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="The study's folder, new; one that was stopped, given alone, is gone on with.  [default: in runs/]",
        ),
    ] = None,
    recipe: Annotated[
        str | None, recipe_option("How to train: a name or a TOML file.  [default: the study's, else fast]")
    ] = None,
    set_: Annotated[list[str] | None, set_option("Change a key of the recipe, in all arms alike")] = None,
    data_root: DataRoot = None,
    device: Device = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Train with one thing changed, and see what it is worth.

    Every arm is trained with several seeds; a table with intervals and a figure show what came of it.

    Examples:
        alexnet ablate --study pooling --minutes 60 --out runs/pooling
        alexnet ablate photos/ --vary optimizer.lr=0.01,0.001
        alexnet ablate photos/ --vary model.dropout=0.0,0.5 --seeds 5
        alexnet ablate --out runs/pooling
    """
    if (study is None) == (not vary):
        given = [study, data, minutes, seeds, recipe, data_root, set_]
        if study is not None or out is None or any(value is not None for value in given):
            raise typer.BadParameter("say what to train: --study NAME or --vary KEY=A,B (or --out alone, to go on with it)")
    from alexnet import api

    found = api.ablate(
        data,
        study=study,
        vary=vary or (),
        recipe=recipe,
        out=out,
        minutes=minutes,
        seeds=seeds or 3,
        settings=_settings({}, data_root, set_),
        device=device,
        threads=threads,
    )
    if as_json:
        print_json(found)
    else:
        show_study(found)


@command()
def import_keras(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What Keras saved: .keras, .weights.h5 or .h5.")],
    variant: Annotated[
        str, typer.Option(metavar="NAME", help="Its architecture (alexnet model list).", autocompletion=variants)
    ],
    out: Annotated[Path, typer.Option(metavar="RUN", help="The run folder, new.")],
    classes: Annotated[
        str | None, typer.Option(metavar="A,B,…", help="Names of its outputs.  [default: the recipe's dataset's, else 0, 1, …]")
    ] = None,
    recipe: Annotated[
        str | None,
        recipe_option(
            "The recipe whose [images] say how they were prepared.  [default: that of the variant's name, else fast]"
        ),
    ] = None,
    set_: Annotated[list[str] | None, set_option("Change a key of the recipe, such as images.cache_size=256")] = None,
) -> None:
    """Make a run folder of a network that Keras trained.

    It predicts like any other run. It needs h5py (pip install h5py).

    Examples:
        alexnet import-keras m.h5 --variant cats-dogs --classes cat,dog --out runs/m
        alexnet import-keras c.h5 --variant cifar10 --set images.cache_size=32 --out run
    """
    from alexnet.convert import keras
    from alexnet.recipe import settings_from

    names = None if classes is None else [name.strip() for name in classes.split(",")]
    run = keras.import_keras(file, variant=variant, classes=names, recipe=recipe, settings=settings_from(set_ or ()), out=out)
    print(f"{'predict':10}  alexnet predict {shell_quote(run)} IMAGE…")
