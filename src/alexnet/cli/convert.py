"""The command that imports trained networks."""

import os
from pathlib import Path
from typing import Annotated

import typer

import alexnet
from alexnet.cli.app import app
from alexnet.cli.completion import variants, weights
from alexnet.cli.help import MAKE, Command
from alexnet.cli.options import DataRoot, option, recipe_option, set_option
from alexnet.cli.train import recipe_settings
from alexnet.errors import AlexNetError, error_reason, shell_quote
from alexnet.files import expand_user


@app.command("import", cls=Command, rich_help_panel=MAKE)
def import_weights(
    file: Annotated[
        str,
        typer.Argument(
            metavar="WEIGHTS",
            help="imagenet1k (torchvision's, downloaded), or a file: .pth or .safetensors in torchvision's layout, .keras, "
            ".weights.h5, .h5, .caffemodel or .onnx.",
            autocompletion=weights,
        ),
    ],
    out: Annotated[Path, option("RUN", "Run folder to create.")],
    variant: Annotated[
        str | None,
        option(
            "NAME",
            "Architecture (alexnet model list); needed for Keras.  [default: the file's]",
            autocompletion=variants,
        ),
    ] = None,
    classes: Annotated[
        str | None,
        option(
            "A,B,…|FILE", "Class labels, or a text file of them, one a line.  [default: ImageNet's for 1,000, else 0, 1, …]"
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        recipe_option(
            "Recipe whose [images] describe the preprocessing.  [default: the original's; for Keras, the variant's or fast]"
        ),
    ] = None,
    set_: Annotated[list[str] | None, set_option("Change a recipe key, such as images.cache_size=256")] = None,
    data_root: DataRoot = None,
) -> None:
    """Make a run of a network that was trained elsewhere.

    It predicts like any other run: labels and preprocessing are the original's. Nothing in the file is executed.

    Examples:
        alexnet import imagenet1k --out runs/imagenet
        alexnet import bvlc_alexnet.caffemodel --out runs/bvlc
        alexnet import places365.pth.tar --classes names.txt --out runs/places
        alexnet import m.h5 --variant cats-dogs --classes cat,dog --out runs/m
    """
    labels = None if classes is None else _labels(classes)
    settings = recipe_settings({}, None, set_)
    run = alexnet.import_weights(
        file, variant=variant, classes=labels, recipe=recipe, settings=settings, out=out, data_root=data_root
    )
    print(f"{'predict':10}  alexnet predict {shell_quote(run)} IMAGE…")


def _labels(classes: str) -> list[str]:
    """Return the labels of a text file, one a line, or of a list with commas."""
    path = expand_user(classes)
    try:
        if os.path.isfile(path):  # False if the labels are too long for a file's name
            return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise AlexNetError(f"--classes: cannot read {path}: {error_reason(error)}") from error
    return [name.strip() for name in classes.split(",")]
