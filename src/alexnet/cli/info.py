"""Commands that inspect datasets, recipes and variants: data, recipes, model."""

from pathlib import Path
from typing import Annotated

import typer

import alexnet
from alexnet.cli.app import group
from alexnet.cli.completion import recipes
from alexnet.cli.help import INSIDE, Command
from alexnet.cli.options import (
    AsJson,
    Classes,
    DataRoot,
    Overwrite,
    VariantName,
    data_argument,
    flag,
    option,
    recipe_option,
    set_option,
    table_options,
)
from alexnet.cli.output import print_doubts, print_problems, print_problems_csv, print_result, print_shards
from alexnet.errors import counted

data_group = group(
    "data",
    INSIDE,
    "Inspect datasets: check them, draw samples, find wrong labels.",
    "alexnet data check photos/",
    "alexnet data show photos/",
    "alexnet data doubts runs/folds",
)
recipe_group = group(
    "recipes",
    INSIDE,
    "List and print the built-in recipes.",
    "alexnet recipes list",
    "alexnet recipes show fast > mine.toml",
    "alexnet train photos/ --recipe mine.toml",
)
model_group = group(
    "model", INSIDE, "List, summarise and plot the built-in variants.", "alexnet model list", "alexnet model summary paper"
)


@data_group.command("check", cls=Command)
@table_options
def data_check(
    data: Annotated[str, data_argument()],
    table: dict[str, str],
    data_root: DataRoot = None,
    as_json: AsJson = False,
    as_csv: Annotated[bool, flag("--csv", "Print CSV: image, kind, detail.")] = False,
) -> None:
    """Check every image of DATA.

    Reports damaged, unusual and bad images, duplicates, images in two splits, and cues that give a class away.
    Nothing is changed.

    Examples:
        alexnet data check photos/
        alexnet data check photos/ --csv > problems.csv
        alexnet data check dogs.csv --label-column breed
    """
    if as_json and as_csv:
        raise typer.BadParameter("choose one of --json and --csv")
    print_result(alexnet.check(data, data_root, table).to_json(), print_problems_csv if as_csv else print_problems, as_json)


@data_group.command("show", cls=Command)
@table_options
def data_show(
    data: Annotated[str, data_argument()],
    table: dict[str, str],
    recipe: Annotated[str | None, recipe_option("Also show the images as augmented by this recipe.")] = None,
    changes: Annotated[list[str] | None, set_option("Change a setting of the recipe")] = None,
    out: Annotated[Path | None, option("PNG", "File to write.  [default: <data>-samples.png]")] = None,
    overwrite: Overwrite = False,
    data_root: DataRoot = None,
) -> None:
    """Draw samples of DATA with their labels.

    With --recipe, draws images before and after the recipe's augmentation. With --set alone, the recipe is fast.

    Examples:
        alexnet data show photos/
        alexnet data show photos/ --recipe cats-dogs
        alexnet data show photos/ --set augment.mixup=0.2
    """
    from alexnet.data.sources import open_table
    from alexnet.recipe import Recipe, load, parse_settings
    from alexnet.report import samples

    images = open_table(data, data_root, settings=Recipe().with_settings(table).data)
    if recipe is None and changes:
        recipe = "fast"
    trained = f"-{Path(recipe).stem}" if recipe else ""
    path = out or Path(f"{images.name}{trained}-samples.png")  # `model plot` writes VARIANT.png
    if recipe is None:
        samples.show_samples(images, path, overwrite)
    else:
        samples.show_augmented(images, load(recipe).with_settings(parse_settings(changes or ())), path, overwrite)
    print(path)


@data_group.command("shard", cls=Command)
@table_options
def data_shard(
    data: Annotated[str, data_argument()],
    table: dict[str, str],
    out: Annotated[Path, option("FOLDER", "Folder for the shards, new or empty.")],
    side: Annotated[int, option("N", "Scale larger images to this shorter side, in pixels.")] = 256,
    quality: Annotated[int, option("N", "Quality of scaled images as JPEG, from 1 to 95.")] = 90,
    raw: Annotated[bool, flag("--raw", "Pack the files as they are.")] = False,
    data_root: DataRoot = None,
    as_json: AsJson = False,
) -> None:
    """Write DATA as WebDataset shards: archives of images and labels.

    They are smaller, and faster to list and to read, than a million files. Train on the folder, or on a range of
    shards. After a stop, the same command goes on. Nothing is changed in DATA.

    Examples:
        alexnet data shard photos/ --out shards/
        alexnet train shards/
        alexnet data shard photos/ --out shards/ --side 128 --quality 85
    """
    size = None if raw else side
    print_result(
        alexnet.shard(data, out, side=size, quality=quality, data_root=data_root, settings=table), print_shards, as_json
    )


@data_group.command("doubts", cls=Command)
def data_doubts(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder that alexnet train --folds made.")],
    as_csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write the list to a CSV file, too.")] = None,
    page: Annotated[
        Path | None,
        option("FILE", "Write an HTML page with the photos, too: decide on each, and it makes a CSV file to train from."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """List photos whose labels are probably wrong.

    The networks of alexnet train DATA --folds K, none of which saw the photos that it predicts, disagree with these labels.
    Those that are most probably wrong come first. Nothing is changed.

    Examples:
        alexnet data doubts runs/folds
        alexnet data doubts runs/folds --page doubts.html
    """
    print_result(alexnet.find_doubts(run, csv=as_csv, page=page, overwrite=overwrite), print_doubts, as_json)


@recipe_group.command("list", cls=Command)
def recipes_list() -> None:
    """List the built-in recipes.

    Examples:
        alexnet recipes list
    """
    from alexnet import recipe

    for name in recipe.names():
        print(recipe.read_text(name).partition("\n")[0].lstrip("# "))


@recipe_group.command("show", cls=Command)
def recipes_show(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="Recipe: a name (alexnet recipes list) or a TOML file.", autocompletion=recipes),
    ],
) -> None:
    """Print a recipe, to copy and change.

    Its comments name its source, the command, the time it takes, and the accuracy to expect.

    Examples:
        alexnet recipes show cats-dogs
        alexnet recipes show fast > mine.toml
    """
    from alexnet import recipe

    print(recipe.read_text(name), end="")


@model_group.command("list", cls=Command)
def model_list() -> None:
    """List the built-in variants and their sources.

    Examples:
        alexnet model list
    """
    from alexnet.network.variants import ROWS

    for row in ROWS:
        print(f"{row.name:12} {row.input_size}x{row.input_size}, {counted(row.classes, 'class')}: {row.source}")


@model_group.command("summary", cls=Command)
def model_summary(name: VariantName, classes: Classes = None, as_json: AsJson = False) -> None:
    """Summarise a variant layer by layer.

    Prints output shapes, receptive fields in pixels, parameter counts, how the sizes are computed, and the memory that the
    network takes in float32.

    Examples:
        alexnet model summary paper
        alexnet model summary cats-dogs --classes 2 --json
    """
    from alexnet.network.summary import summarize

    summary = summarize(name, classes)
    print_result(summary.to_json(), lambda _: print(summary.table()), as_json)


@model_group.command("plot", cls=Command)
def model_plot(
    name: VariantName,
    classes: Classes = None,
    out: Annotated[Path | None, option("FILE", "Write only this .svg or .png.  [default: VARIANT.svg and VARIANT.png]")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Plot a variant as a diagram and print the file names.

    Feature maps are drawn as boxes, towers as rows.

    Examples:
        alexnet model plot paper
        alexnet model plot owt --classes 10 --out owt.svg
    """
    from alexnet.files import refuse_overwrite
    from alexnet.network import diagram
    from alexnet.network.summary import summarize

    summary = summarize(name, classes)
    paths = [out] if out else [Path(name + suffix) for suffix in diagram.FORMATS]
    for path in paths:
        refuse_overwrite(path, overwrite)
    for path in paths:
        diagram.save(summary, path, overwrite)
        print(path)
