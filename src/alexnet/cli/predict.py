"""Commands that use runs: predict, search, export, serve, features."""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

import alexnet
from alexnet.cli import output
from alexnet.cli.app import app, group
from alexnet.cli.help import USE, Command
from alexnet.cli.images import image_names, print_results
from alexnet.cli.options import AsJson, Device, Overwrite, RunPath, Threads, Views, count, flag, images_argument, option
from alexnet.errors import shell_quote
from alexnet.sort.journal import How

command = partial(app.command, cls=Command, rich_help_panel=USE)
search = group(
    "search",
    USE,
    "Search for similar images: index a folder, then query it.",
    "alexnet search index runs/photos photos/",
    "alexnet search query runs/photos cat.jpg",
)


@command()
def predict(
    run: RunPath,
    images: Annotated[list[str], images_argument("Images to classify")],
    top: Annotated[int, option("N", "Number of labels per image.", min=1)] = 5,
    as_json: AsJson = False,
    jsonl: Annotated[bool, flag("--jsonl", "Print one JSON object per line, as results arrive.")] = False,
    as_csv: Annotated[bool, flag("--csv", "Print CSV: image, rank, label, probability, known, error.")] = False,
    views: Views = None,
    sort: Annotated[
        Path | None,
        option("FOLDER", "Also copy each image into FOLDER/LABEL. Nothing is overwritten; run it again to continue."),
    ] = None,
    move: Annotated[bool, flag("--move", "With --sort: move the images instead.")] = False,
    link: Annotated[bool, flag("--link", "With --sort: make symbolic links instead.")] = False,
    undo: Annotated[bool, flag("--undo", "Take back a --sort: IMAGE is its FOLDER.")] = False,
    device: Device = None,
) -> None:
    """Predict the labels of images, most probable first.

    Probabilities are calibrated on the run's validation images. An image that seems to show none of the labels is marked
    unknown; --sort puts it into FOLDER/unsure. Exit code 1 if an image could not be read; the others are still predicted.

    Examples:
        alexnet predict runs/photos cat.jpg dog.jpg
        alexnet predict runs/photos folder/ --top 1 --csv > answers.csv
        find photos -name '*.jpg' | alexnet predict runs/photos - --jsonl
        alexnet predict runs/photos folder/ --sort sorted/
        alexnet predict runs/photos sorted/ --undo
    """
    if sum((as_json, jsonl, as_csv)) > 1:
        raise typer.BadParameter("choose one of --json, --jsonl and --csv")
    if move and link:
        raise typer.BadParameter("choose one of --move and --link")
    if (move or link) and sort is None:
        raise typer.BadParameter("--move and --link are for --sort FOLDER")
    if undo:
        _undo(images, sort, as_json)
        return
    print_text = output.print_jsonl if jsonl else output.print_predictions_csv if as_csv else output.print_predictions
    opened, names = alexnet.load(run, device), image_names(images)
    if sort is None:
        print_results(opened.stream(names, top, count(views)), print_text, as_json)
        return
    try:
        how: How = "move" if move else "link" if link else "copy"
        print_results(opened.sort(names, sort, how, top, count(views)), print_text, as_json)
    finally:
        print(f"{'undo':10}  alexnet predict {shell_quote(run)} {shell_quote(sort)} --undo", file=sys.stderr)


def _undo(folders: list[str], sort: Path | None, as_json: bool) -> None:
    """Take back a --sort; exit with code 1 if something is kept."""
    if sort is not None or len(folders) != 1:
        raise typer.BadParameter("--undo takes one folder that --sort made, in place of the images")
    result = alexnet.undo_sort(folders[0])
    output.print_result(result, output.print_undone, as_json)
    if result["kept"]:
        raise typer.Exit(1)


@command()
def export(
    run: RunPath,
    bare: Annotated[
        bool, flag("--bare", "Export the network without preprocessing: normalised batches N 3 I I, float32, in; logits out.")
    ] = False,
    int8: Annotated[
        bool, flag("--int8", "Quantise to 8-bit integers: a quarter of the size; the loss of accuracy is measured.")
    ] = False,
    out: Annotated[
        Path | None, option("FILE", "File to write.  [default: model.onnx, model-bare.onnx … in RUN/export]")
    ] = None,
    page: Annotated[
        Path | None, option("FOLDER", "Write a web page that answers in the browser, for any host of files, instead.")
    ] = None,
    openvino: Annotated[
        Path | None, option("FILE", "Write a model for OpenVINO instead: .xml, with its weights in .bin.")
    ] = None,
    torchvision: Annotated[
        Path | None,
        option("FILE", "Write a state dict for torchvision.models.alexnet instead: .pth or .safetensors. Variant owt only."),
    ] = None,
    keras: Annotated[
        Path | None, option("FILE", "Write weights for model.load_weights of Keras 3 instead: .weights.h5.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    device: Device = None,
) -> None:
    """Export a run to other programs, or as a web page.

    ONNX runs without PyTorch: the input is an RGB image of any size (H W 3, uint8), the outputs are calibrated probabilities,
    and whether the image is known; labels (JSON) and preprocessing are in the metadata. The file is run in onnxruntime and
    compared with the run first. Requires onnx, onnxscript and onnxruntime (pip install onnx onnxscript onnxruntime).

    --page writes a folder for any host of files. The network runs in the visitor's browser, and no photo leaves it. The page is
    compared in Chromium first, if there is one. Requires onnxruntime-web; the command says how to get it.

    --openvino is for Intel's runtime, and is compared there. Requires it (pip install --no-deps openvino).

    For torchvision and Keras, the weights are written. The file is read back and compared, and the command prints how to load
    it and how to prepare images. Keras requires h5py (pip install h5py).

    Examples:
        alexnet export runs/photos
        alexnet export runs/photos --int8 --out small.onnx
        alexnet export runs/photos --page site/
        alexnet export runs/photos --openvino photos.xml
        alexnet export runs/cats-dogs --keras cats-dogs.weights.h5
        alexnet export runs/finetuned --torchvision alexnet.pth
    """
    onnx = bare or int8 or out is not None
    if sum((onnx, *(each is not None for each in (page, openvino, torchvision, keras)))) > 1:
        raise typer.BadParameter("choose one of --page, --openvino, --torchvision, --keras, and ONNX (--bare, --int8, --out)")
    opened = alexnet.load(run, device)
    if page is not None:
        output.print_result(opened.export_page(page, overwrite=overwrite), output.print_page, as_json)
    elif openvino is not None:
        output.print_result(opened.export_openvino(openvino, overwrite=overwrite), output.print_export, as_json)
    elif torchvision is not None:
        output.print_result(opened.export_torchvision(torchvision, overwrite=overwrite), output.print_weights, as_json)
    elif keras is not None:
        output.print_result(opened.export_keras(keras, overwrite=overwrite), output.print_weights, as_json)
    else:
        result = opened.export(out, bare=bare, int8=int8, overwrite=overwrite)
        output.print_result(result, output.print_export, as_json)


@command()
def serve(
    run: RunPath,
    host: Annotated[
        str, option("NAME", "Address to listen on; 0.0.0.0 accepts connections from other machines.")
    ] = "127.0.0.1",
    port: Annotated[int, option("N", "Port; 0 takes a free one.", min=0, max=65_535)] = 8000,
    views: Views = None,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Serve a run over HTTP: a web page and an API.

    Send images to /predict and /explain with POST. If ALEXNET_API_KEY is set in the environment, clients must send that key.
    Ctrl-C stops the server. Requires fastapi, uvicorn, python-multipart and captum (pip install them).

    Examples:
        alexnet serve runs/photos
        curl -F images=@cat.jpg http://127.0.0.1:8000/predict
    """
    alexnet.load(run, device).serve(host, port, threads, count(views))


@search.command("index", cls=Command)
def search_index(
    run: RunPath,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of images to index, subfolders included.")],
    out: Annotated[Path | None, option("INDEX", "Index to create or add to.  [default: RUN/search]")] = None,
    bits: Annotated[int | None, option("N", "Length of binary codes, a multiple of 8.  [default: 128]", min=8)] = None,
    device: Device = None,
) -> None:
    """Index the images in FOLDER for `search query`.

    Run it again to update the index: new and changed images are added, missing ones removed. Requires faiss (pip install
    faiss-cpu).

    Examples:
        alexnet search index runs/photos photos/
        alexnet search index runs/photos more-photos/
    """
    result = alexnet.load(run, device).index(folder, out, bits)
    output.print_index(result, run, f" --index {shell_quote(result['index'])}" if out else "")


@search.command("query", cls=Command)
def search_query(
    run: RunPath,
    images: Annotated[list[str], images_argument("Query images")],
    top: Annotated[int, option("N", "Number of neighbours per image.", min=1)] = 10,
    binary: Annotated[bool, flag("--binary", "Compare binary codes: faster, slightly less exact.")] = False,
    index: Annotated[Path | None, option("INDEX", "Index to search.  [default: RUN/search]")] = None,
    out: Annotated[Path | None, option("PNG", "Also draw a contact sheet, a row per image.")] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    device: Device = None,
) -> None:
    """Find the most similar images, nearest first.

    The numbers are distances between codes or, with --binary, numbers of differing bits. Exit code 1 if an image could not be
    read.

    Examples:
        alexnet search query runs/photos cat.jpg
        alexnet search query runs/photos cat.jpg --top 5 --out alike.png
    """
    opened = alexnet.load(run, device)
    results = opened.search(image_names(images), top, binary=binary, index=index, out=out, overwrite=overwrite)
    print_results(results, partial(output.print_neighbours, sheet=out), as_json)


@command()
def features(
    run: RunPath,
    images: Annotated[list[str], images_argument("Images")],
    layers: Annotated[str, option("A,B,…", "Layers, as in alexnet model summary, or torchvision's names: features.11.")],
    out: Annotated[Path, option("FILE", "File to write: .npz, .h5, .mat or .zarr.")],
    maps: Annotated[
        Literal["keep", "mean", "max", "flat"],
        option("HOW", "Feature maps: keep, mean or max over height and width, or flat."),
    ] = "keep",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    device: Device = None,
) -> None:
    """Write the activations of layers for many images to a file.

    A row for each image, and their names in the same order. If it is stopped, the same command goes on from there. Exit code 1
    if an image could not be read. .h5 requires h5py (pip install h5py).

    Examples:
        alexnet features runs/photos photos/ --layers relu5,relu7 --out f.npz
        alexnet features runs/photos photos/ --layers relu5 --maps mean --out f.h5
    """
    names = [layer.strip() for layer in layers.split(",") if layer.strip()]
    result = alexnet.load(run, device).extract(image_names(images), names, out, maps, overwrite)
    output.print_result(result, output.print_extracted, as_json)
    if result["errors"]:
        raise typer.Exit(1)
