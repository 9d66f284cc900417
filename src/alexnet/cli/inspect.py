"""Commands that inspect runs: evaluate, compare, explain, units, report, similarity."""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

import alexnet
from alexnet.cli.app import app
from alexnet.cli.completion import datasets
from alexnet.cli.help import LOOK, Command
from alexnet.cli.images import image_names, print_results
from alexnet.cli.options import (
    AsJson,
    Device,
    Overwrite,
    RunPath,
    Views,
    count,
    flag,
    images_argument,
    option,
    table_options,
)
from alexnet.cli.output import (
    print_comparison,
    print_curve,
    print_curve_csv,
    print_evaluation,
    print_explanations,
    print_result,
    print_similarity,
    print_units,
)
from alexnet.errors import AlexNetError
from alexnet.progress import track

command = partial(app.command, cls=Command, rich_help_panel=LOOK)


@command()
@table_options
def evaluate(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN… [DATA]",
            autocompletion=datasets,
            help="Run folders, or weights of an epoch in RUN/epochs; then a dataset, as for train.  [default: the runs' own]",
        ),
    ],
    table: dict[str, str],
    split: Annotated[
        Literal["train", "val", "test"] | None,
        option("NAME", "train, val or test.  [default: test, else val; all images if DATA has no splits]"),
    ] = None,
    views: Views = None,
    over_training: Annotated[
        bool,
        flag("--over-training", "Evaluate all weights that RUN saved on the way, and draw RUN/over-training.png."),
    ] = False,
    device: Device = None,
    as_csv: Annotated[
        bool, flag("--csv", "Print CSV, a row per image: label, prediction, probability, loss; or a row per saved weights.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate a run, or several together, on a dataset.

    Top-1 is the fraction of images whose label comes first, with its 95 % interval; top-5, for more than five classes, the
    fraction whose label is among the first five. A row for each class follows. Several runs answer together, with the mean of
    their probabilities.

    Examples:
        alexnet evaluate runs/photos
        alexnet evaluate runs/photos other-photos/ --views 10
        alexnet evaluate runs/photos --split val --csv > predictions.csv
        alexnet evaluate runs/seed0 runs/seed1 runs/seed2
        alexnet evaluate runs/photos --over-training
    """
    if as_json and as_csv:
        raise typer.BadParameter("choose one of --json and --csv")
    from alexnet.inference.predictions import csv_text

    *others, last = runs
    data = last if others and not _is_run(Path(last)) else None
    if over_training:
        if len(runs) > (1 if data is None else 2):
            raise typer.BadParameter("--over-training is for one run")
        curve = alexnet.load(runs[0], device).over_training(data, split, count(views), table)
        print_result(curve, print_curve_csv if as_csv else print_curve, as_json)
        return
    result = alexnet.evaluate(runs if data is None else others, data, split, count(views), table, device)
    if as_csv:
        print(csv_text([result]), end="")
    else:
        print_result(result.to_json(), print_evaluation, as_json)


def _is_run(path: Path) -> bool:
    from alexnet.run import find_weights

    try:
        return bool(find_weights(path))
    except AlexNetError:
        return path.parent.joinpath(path.name.partition("@")[0], "recipe.toml").exists()  # such as RUN@512, not saved


@command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN…", help="Run folders, compared with the first.")],
    seeds: Annotated[bool, flag("--seeds", "Make one row of runs that differ in their seed alone.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare runs: their metrics, and the settings that differ.

    Examples:
        alexnet compare runs/photos runs/finetuned
        alexnet compare runs/relu-* runs/tanh-* --seeds
    """
    if len(runs) < 2:
        raise typer.BadParameter("name two runs or more")
    print_result(alexnet.compare(runs, seeds), print_comparison, as_json)


@command()
def explain(
    run: RunPath,
    images: Annotated[list[str], images_argument("Images to explain")],
    out: Annotated[Path | None, option("FOLDER", "Folder for the figures.  [default: RUN/explain]")] = None,
    label: Annotated[str | None, option("LABEL", "Label to explain.  [default: the most probable of each image]")] = None,
    layer: Annotated[str | None, option("LAYER", "Layer whose maps Grad-CAM looks at.  [default: the last with maps]")] = None,
    method: Annotated[
        str, option("NAME,NAME,…", "Heat maps to draw, by name (see above).")
    ] = "grad_cam,occlusion,integrated_gradients",
    scores: Annotated[bool, flag("--scores", "Also say how far to believe each heat map.")] = False,
    arrays: Annotated[bool, flag("--arrays", "Also write a NumPy archive (.npz) per image.")] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    device: Device = None,
) -> None:
    """Explain predictions.

    Draws a figure per image: heat maps by several methods, and feature maps. Exit code 1 if an image could not be read.
    Requires captum (pip install captum).

    Methods: grad_cam, occlusion, integrated_gradients, saliency, smooth_grad, input_x_gradient, guided_backprop, deconvolution,
    guided_grad_cam, gradient_shap, deep_lift, feature_ablation, kernel_shap.

    With --scores: areas under the probability of the label while the hottest pixels turn grey first (deletion: small is good)
    or come into a grey image first (insertion: large is good), both in random order for comparison; and the rank correlation
    of the map with that of a network with random weights (near 0 is good).

    Examples:
        alexnet explain runs/photos cat.jpg
        alexnet explain runs/photos 'photos/cat/1*.jpg' --out why/ --arrays
        alexnet explain runs/photos cat.jpg --label dog --layer relu3
        alexnet explain runs/photos cat.jpg --method occlusion,smooth_grad --scores
    """
    names = [name.strip() for name in method.split(",") if name.strip()]
    results = alexnet.load(run, device).explain(image_names(images), out, arrays, overwrite, label, layer, names, scores)
    print_results(track(results, "Explaining"), print_explanations, as_json)


@command()
def units(
    run: RunPath,
    images: Annotated[list[str] | None, images_argument("Images to choose from")] = None,
    layer: Annotated[str, option("LAYER", "Layer, as in alexnet model summary.")] = "relu5",
    numbers: Annotated[
        str | None, typer.Option("--units", metavar="N,N,…", help="Numbers of units, from 0.  [default: the first 24]")
    ] = None,
    out: Annotated[Path | None, option("PNG", "File to draw.  [default: RUN/units-LAYER.png, or ascent-LAYER.png]")] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    device: Device = None,
) -> None:
    """Show what excites the units of a layer.

    Draws a row for each unit: the nine images that excite it most, cropped to what it sees. A unit is a channel of maps, or a
    place in a dense layer. Exit code 1 if an image could not be read.

    Without images, an image is made up for each unit by gradient ascent; of maps, for the unit in the middle. It shows what the
    unit responds to, not what it is for.

    Examples:
        alexnet units runs/photos photos/
        alexnet units runs/photos photos/ --layer relu3 --units 0,7,12 --out units.png
        alexnet units runs/photos --layer fc8 --units 0,1
    """
    try:
        chosen = None if numbers is None else [int(number) for number in numbers.split(",")]
    except ValueError:
        raise typer.BadParameter(f"--units is {numbers!r}, but should be numbers: 0,7,12") from None
    result = alexnet.load(run, device).units(image_names(images) if images else None, layer, chosen, out, overwrite)
    print_result(result, print_units, as_json)
    if result["skipped"]:
        raise typer.Exit(1)


@command()
def report(run: RunPath, device: Device = None) -> None:
    """Rewrite RUN/report.html and print its path.

    Examples:
        alexnet report runs/photos
    """
    print(alexnet.load(run, device).report())


@command()
def similarity(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE…", help="Features (alexnet features), and dissimilarities from elsewhere: .npy or .csv."),
    ],
    out: Annotated[Path | None, option("PNG", "Also draw a figure.")] = None,
    kind: Annotated[
        Literal["correlation", "euclidean", "cosine"], option("NAME", "Dissimilarity of the features of two images.")
    ] = "correlation",
    resamples: Annotated[int, option("N", "Times that the images are drawn anew for intervals; 0 for none.", min=0)] = 200,
    seeds: Annotated[
        bool, flag("--seeds", "A file for each seed, of the same layers: compare between seeds, and average.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Compare how layers, runs and people tell images apart.

    Every layer in the files is compared with every other: by the rank correlation of their dissimilarities (RSA), and by linear
    CKA, each with its 95 % interval. All files must be of the same images.

    Examples:
        alexnet similarity features.npz --out similarity.png
        alexnet similarity run-a.npz run-b.npz people.csv --out similarity.png
        alexnet similarity seed0.npz seed1.npz seed2.npz --seeds
    """
    print_result(alexnet.similarity(list(files), out, kind, resamples, overwrite, seeds), print_similarity, as_json)
