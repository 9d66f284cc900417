"""Commands that train: train, choose, ablate."""

import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import alexnet
from alexnet.ablation import STUDIES
from alexnet.cli.app import app
from alexnet.cli.completion import variants, weights
from alexnet.cli.help import MAKE, Command
from alexnet.cli.options import (
    AsJson,
    DataRoot,
    Device,
    Threads,
    data_argument,
    flag,
    option,
    recipe_option,
    set_option,
    table_options,
)
from alexnet.cli.output import print_choice, print_folds, print_lr_suggestion, print_result, print_study, print_summary
from alexnet.files import expand_user
from alexnet.progress import output_disabled

STARTED = time.monotonic()  # before torch is imported, so that the user's whole wait counts

command = partial(app.command, cls=Command, rich_help_panel=MAKE)

RECIPE_IS_KEPT = (
    "a resumed run keeps its recipe: give only --resume RUN (with --device, --threads, --processes or --parallel), or, to "
    "train more, start a new run from it: alexnet train DATA --weights RUN --epochs N"
)

# Options of train only
RecipeName = Annotated[str | None, recipe_option("Recipe: a name (alexnet recipes list) or a TOML file.  [default: fast]")]
Variant = Annotated[
    str | None, option("NAME", "Architecture (alexnet model list).  [default: the recipe's]", autocompletion=variants)
]
Weights = Annotated[
    str | None,
    option(
        "RUN|FILE",
        "Start from trained weights: a run or a file in its epochs/, along with its variant; a file in torchvision's layout; "
        "or imagenet1k, torchvision's own, which is downloaded (both need --variant owt).",
        autocompletion=weights,
    ),
]
Minutes = Annotated[
    float | None,
    option("M", "Instead of --epochs: finish within M minutes of the command's start, validation and test included.", min=0.01),
]
Out = Annotated[Path | None, option("FOLDER", "Run folder to create.  [default: runs/<data>-<recipe>-<date>-<time>]")]
Seed = Annotated[
    int | None, option("N", "Seed of initial weights, shuffling and augmentation.  [default: the recipe's]", min=0)
]
Resume = Annotated[
    Path | None,
    option(
        "RUN",
        "Resume a stopped run. It keeps its recipe: only --device, --threads, --processes, --parallel and --json can be given "
        "as well.",
    ),
]
FindLR = Annotated[
    bool,
    flag(
        "--find-lr",
        "Do not train: find a learning rate in 100 steps, and plot the loss against it in FOLDER-lr.png, where FOLDER is "
        "--out.",
        "--find-rate",
    ),
]
OverwriteCurve = Annotated[
    bool, flag("--overwrite", "With --find-lr: overwrite FOLDER-lr.png, whoever made it. Runs are never overwritten.")
]
Folds = Annotated[
    int | None,
    option(
        "K",
        "Cross-validation: train K networks, each without one K-th of the images, and predict every image by the one that "
        "never saw it. --minutes is the time for all. The same command resumes.",
        min=2,
    ),
]
Parallel = Annotated[
    Literal["data", "towers", "hybrid"],
    option(
        "KIND",
        "How processes divide the work: data (each batch), towers (one tower each), or hybrid (each batch, but the units of "
        "dense layers).",
    ),
]


@command()
@table_options
def train(
    table: dict[str, str],
    data: Annotated[str | None, data_argument(default="the recipe's")] = None,
    recipe: RecipeName = None,
    variant: Variant = None,
    weights: Weights = None,
    epochs: Annotated[int | None, option("N", "Number of epochs.  [default: the recipe's]", min=1)] = None,
    minutes: Minutes = None,
    out: Out = None,
    seed: Seed = None,
    set_: Annotated[list[str] | None, set_option("Change a recipe key, such as optimizer.lr=0.02")] = None,
    resume: Resume = None,
    folds: Folds = None,
    find_lr: FindLR = False,
    overwrite: OverwriteCurve = False,
    processes: Annotated[int, option("N", "Number of processes on this machine that train together.", min=1)] = 1,
    parallel: Parallel = "data",
    data_root: DataRoot = None,
    device: Device = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Train a network on DATA into a new run folder.

    DATA is a folder with one subfolder per class, or with train/, val/ and test/ of such folders; a folder of files such as
    cat.1.jpg; a CSV, Parquet or JSON lines file with the columns image and label; or the name of a built-in dataset.

    Examples:
        alexnet train photos/
        alexnet train photos/ --minutes 15 --out runs/photos
        alexnet train cifar10 --recipe cifar10 --set optimizer.lr=0.02
        alexnet train dogs.csv --image-column file --label-column breed
        alexnet train photos/ --recipe head
        alexnet train photos/ --recipe finetune --weights runs/photos
        alexnet train photos/ --recipe head --folds 5
        alexnet train photos/ --find-lr
        alexnet train photos/ --processes 2
        alexnet train --resume runs/photos
    """
    if folds is not None and (find_lr or processes > 1 or "WORLD_SIZE" in os.environ):
        raise typer.BadParameter("--folds trains in one process, one fold after the other, without --find-lr or --processes")
    if processes > 1 and not find_lr and "WORLD_SIZE" not in os.environ:
        from alexnet.training.distributed import launch

        raise typer.Exit(launch(processes, sys.argv[1:], device))
    if overwrite and not find_lr:
        raise typer.BadParameter("--overwrite is for --find-lr only: runs are never overwritten, name another --out")
    given = [data, recipe, variant, weights, epochs, minutes, out, seed, set_, data_root, folds, table or None]
    if resume is not None and (find_lr or any(value is not None for value in given)):
        raise typer.BadParameter(RECIPE_IS_KEPT)
    if epochs is not None and minutes is not None:
        raise typer.BadParameter("choose one of --epochs and --minutes")
    flags = {"model.variant": variant, "train.epochs": epochs, "train.minutes": minutes, "train.seed": seed}
    options: dict[str, Any] = {"out": out, "weights": weights, "device": device, "threads": threads}
    options |= {"recipe": recipe or "fast", "settings": recipe_settings({**flags, **table}, data_root, set_)}
    if find_lr:
        curve, figure = alexnet.find_lr(data, **options, overwrite=overwrite)
        print_result(curve.to_json() | {"figure": str(figure)}, print_lr_suggestion, as_json)
        return
    if folds is not None:
        print_result(alexnet.cross_validate(data, **options, folds=folds, started=STARTED), print_folds, as_json)
        return
    if resume is not None:
        run = alexnet.resume(resume, device=device, threads=threads, parallel=parallel, started=STARTED)
    else:
        run = alexnet.train(data, **options, parallel=parallel, started=STARTED)
    if not output_disabled():  # the main process prints the summary
        print_result(run.summary, print_summary, as_json)


def recipe_settings(flags: dict[str, Any], data_root: Path | None, changes: list[str] | None) -> dict[str, Any]:
    """Return the recipe keys that the given options change; --set has precedence."""
    from alexnet.recipe import parse_settings

    root = None if data_root is None else str(expand_user(data_root).absolute())
    given = {key: value for key, value in {**flags, "data.root": root}.items() if value is not None}
    if "train.epochs" in given:
        given |= {"train.max_images": 0, "train.minutes": None}  # which limit the epochs, too
    return {**given, **parse_settings(changes or ())}


# Options of ablate only
StudyName = Annotated[
    str | None, option("NAME", f"Study of a claim: {', '.join(STUDIES)}.", autocompletion=lambda: list(STUDIES))
]
Vary = Annotated[
    list[str] | None,
    option("KEY=A,B,…", "Recipe key and the values to compare; if repeated, every combination is trained."),
]
StudyMinutes = Annotated[
    float | None, option("M", "Time for all trainings together.  [default: the recipe's epochs for each]", min=0.01)
]
StudyOut = Annotated[
    Path | None,
    option("FOLDER", "Study folder to create; without --study and --vary, the study in it is resumed.  [default: in runs/]"),
]


@command()
@table_options
def ablate(
    table: dict[str, str],
    data: Annotated[str | None, data_argument("Dataset, as for train.", default="the study's, else the recipe's")] = None,
    study: StudyName = None,
    vary: Vary = None,
    minutes: StudyMinutes = None,
    seeds: Annotated[int | None, option("N", "Seeds per arm.  [default: 3]", min=1)] = None,
    out: StudyOut = None,
    recipe: Annotated[str | None, recipe_option("Recipe: a name or a TOML file.  [default: the study's, else fast]")] = None,
    set_: Annotated[list[str] | None, set_option("Change a recipe key in all arms")] = None,
    data_root: DataRoot = None,
    device: Device = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Run an ablation study: train with one change, and compare.

    Each arm is trained with several seeds; a table with intervals and a figure show the results.

    Examples:
        alexnet ablate --study pooling --minutes 60 --out runs/pooling
        alexnet ablate photos/ --vary optimizer.lr=0.01,0.001
        alexnet ablate photos/ --vary model.dropout=0.0,0.5 --seeds 5
        alexnet ablate --out runs/pooling
    """
    if (study is None) == (not vary):
        given = [study, data, minutes, seeds, recipe, data_root, set_, table or None]
        if study is not None or out is None or any(value is not None for value in given):
            raise typer.BadParameter("choose --study NAME or --vary KEY=A,B (or give only --out to resume a study)")
    options: dict[str, Any] = {"recipe": recipe, "out": out, "minutes": minutes, "device": device, "threads": threads}
    options |= {"settings": recipe_settings(table, data_root, set_), "seeds": seeds or 3}
    result = alexnet.ablate(data, study=study, vary=vary or (), **options)
    print_result(result, print_study, as_json)


# Options of choose only
ChoiceMinutes = Annotated[float, option("M", "Time for all trainings together, from the command's start.", min=0.01)]
ChoiceOut = Annotated[
    Path | None,
    option("RUN", "Run folder to create; an unfinished choice in it is resumed.  [default: runs/<data>-choice]"),
]
ChoiceWeights = Annotated[
    str, option("RUN|FILE", "Trained weights for the head and for fine-tuning, as for train.", autocompletion=weights)
]


@command()
@table_options
def choose(
    table: dict[str, str],
    data: Annotated[str | None, data_argument("Dataset, as for train.", default="that of the choice in --out")] = None,
    minutes: ChoiceMinutes = 15.0,
    weights: ChoiceWeights = "imagenet1k",
    out: ChoiceOut = None,
    seed: Seed = None,
    data_root: DataRoot = None,
    device: Device = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Train from nothing, fit a head to trained features, fine-tune, and keep what validation prefers.

    A table compares the three on validation images; the test set is evaluated for the one that is kept.

    Examples:
        alexnet choose photos/
        alexnet choose photos/ --minutes 15 --weights runs/cifar10 --out runs/photos
        alexnet choose --out runs/photos
    """
    if data is None and out is None:
        raise typer.BadParameter("name DATA (or give only --out to resume a choice)")
    options: dict[str, Any] = {"minutes": minutes, "weights": weights, "out": out, "device": device, "threads": threads}
    settings = recipe_settings({"train.seed": seed, **table}, data_root, None)
    print_result(alexnet.choose(data, **options, settings=settings, started=STARTED), print_choice, as_json)
