"""Summary and plot of every variant against published tables and counts."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from torch import nn

from alexnet import AlexNet
from alexnet.cli import main
from alexnet.errors import AlexNetError
from alexnet.network.diagram import draw, save
from alexnet.network.summary import LayerSummary, Summary, summarize
from alexnet.network.variants import VARIANTS
from conftest import mostly_long

NAMES = sorted(VARIANTS)
TOWERS = {name: 2 if name in {"paper", "code2012", "caffenet", "bvlc"} else 1 for name in NAMES}
BOXES = ["conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5"]
BARS = ["flatten", "fc6", "fc7", "fc8"]

# What the tutorials print for each layer: name, height x width x channels or units, parameters (- if not printed).
PRINTED = {
    # Tutorial 000, the summary of the trained network.
    "annotated": """
        conv1 54x54x96 34,944       norm1 54x54x96 384          pool1 26x26x96 0
        conv2 26x26x256 614,656     norm2 26x26x256 1,024       pool2 12x12x256 0
        conv3 12x12x384 885,120     norm3 12x12x384 1,536
        conv4 12x12x384 1,327,488   norm4 12x12x384 1,536
        conv5 12x12x256 884,992     norm5 12x12x256 1,024       pool5 5x5x256 0
        flatten 6400 0              fc6 4096 26,218,496         dropout6 4096 0
        fc7 4096 16,781,312         dropout7 4096 0             fc8 16 65,552
    """,
    # Tutorial 001, its summary.
    "cats-dogs": """
        conv1 55x55x96 34,944       pool1 27x27x96 0
        conv2 27x27x256 614,656     pool2 13x13x256 0           norm2 13x13x256 1,024
        conv3 13x13x384 885,120     conv4 13x13x384 1,327,488
        conv5 13x13x256 884,992     pool5 6x6x256 0
        flatten 9216 0              fc6 4096 37,752,832         dropout6 4096 0
        fc7 4096 16,781,312         dropout7 4096 0             fc8 2 8,194
    """,
    # Tutorials 002 and 003 print the same summary, that of the network in 002.
    "cifar10-1x1": """
        conv1 55x55x96 34,944       norm1 55x55x96 384          pool1 27x27x96 0
        conv2 27x27x256 614,656     norm2 27x27x256 1,024       pool2 13x13x256 0
        conv3 13x13x384 885,120     norm3 13x13x384 1,536
        conv4 13x13x384 147,840     norm4 13x13x384 1,536
        conv5 13x13x256 98,560      norm5 13x13x256 1,024       pool5 6x6x256 0
        flatten 9216 0              fc6 4096 37,752,832         dropout6 4096 0
        fc7 4096 16,781,312         dropout7 4096 0             fc8 10 40,970
    """,
    # Tutorial 001, its table of layers.
    "table": """
        conv1 55x55x96 -            pool1 27x27x96 -            norm1 27x27x96 -
        conv2 27x27x256 -           pool2 13x13x256 -           norm2 13x13x256 -
        conv3 13x13x384 -           conv4 13x13x384 -
        conv5 13x13x256 -           pool5 6x6x256 -
        fc6 4096 -                  dropout6 4096 -
        fc7 4096 -                  dropout7 4096 -             fc8 1000 -
    """,
    # Tutorial 000, as calculated in the text, and as printed by its layers in NumPy.
    "scratch": """
        conv1 55x55x96 -            pool1 27x27x96 -
        conv2 27x27x256 -           pool2 13x13x256 -
        conv3 13x13x384 -           conv4 13x13x384 -
        conv5 13x13x256 -           pool5 6x6x256 -
        flatten 9216 -              fc6 4096 -                  fc7 4096 -                  fc8 1000 -
    """,
}
# The code of tutorial 003 has 3x3 kernels in conv4 and conv5, as Keras confirms.
PRINTED["cifar10"] = PRINTED["cifar10-1x1"].replace("147,840", "1,327,488").replace("98,560", "884,992")


Run = Callable[..., tuple[str, str]]


def layer(summary: Summary, name: str) -> LayerSummary:
    return next(layer for layer in summary.layers if layer.name == name)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs `alexnet model` in this process and returns what it prints on both streams."""

    def call(*arguments: object, code: int = 0) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["alexnet", "model", *map(str, arguments)])
        try:
            main()
            left = 0
        except SystemExit as stopped:
            left = int(stopped.code or 0)
        assert left == code
        return tuple(capsys.readouterr())

    return call


# The summary


@pytest.mark.parametrize(
    ("name", "classes", "parameters", "trainable"),
    [
        ("annotated", 16, 46_818_064, 46_815_312),  # printed by tutorial 000
        ("cats-dogs", 2, 58_290_562, 58_290_050),  # by tutorial 001
        ("cifar10-1x1", 10, 56_361_738, 56_358_986),  # by tutorials 002 and 003
        ("cifar10", 10, 58_327_818, 58_325_066),  # the code of tutorial 003, as built in Keras
        ("table", 1000, 62_378_344, 62_378_344),
        ("scratch", 1000, 62_376_968, 62_376_968),
        ("paper", 1000, 60_965_224, 60_965_224),
        ("code2012", 1000, 60_965_224, 60_965_224),
        ("caffenet", 1000, 60_965_224, 60_965_224),
        ("bvlc", 1000, 60_965_224, 60_965_224),
        ("owt", 1000, 61_100_840, 61_100_840),  # torchvision
        ("four-layer", 10, 85_098, 85_098),  # (75 + 1) 32 + (800 + 1) 32 + (800 + 1) 64 + (576 + 1) 10
    ],
)
def test_summary_parameter_totals(name: str, classes: int, parameters: int, trainable: int) -> None:
    summary = summarize(name, classes)
    assert (summary.parameters, summary.trainable) == (parameters, trainable)
    assert sum(layer.parameters for layer in summary.layers) == parameters


@pytest.mark.parametrize(
    ("name", "classes", "printed"),  # by the authors' Keras, which writes MB for MiB and KB for KiB
    [("annotated", 16, ["178.60 MiB", "178.59 MiB", "10.75 KiB"]), ("cats-dogs", 2, ["222.36 MiB", "222.36 MiB", "2.00 KiB"])],
)
def test_summary_memory_equals_that_of_the_tutorials(name: str, classes: int, printed: list[str]) -> None:
    summary = summarize(name, classes)
    for line, size in zip(summary.table().splitlines()[-4:], printed, strict=False):
        assert size in line
    sizes = summary.to_json()["bytes"]
    assert (sizes["parameters"], sizes["trainable"]) == (4 * summary.parameters, 4 * summary.trainable)
    outputs = [np.prod(layer["output"]) for layer in summary.to_json()["layers"]]
    assert sizes["activations"] == 4 * (sum(outputs) + 3 * summary.input[1] ** 2)


@pytest.mark.parametrize("name", sorted(PRINTED))
def test_summary_shapes_and_parameters_by_layer(name: str) -> None:
    words = PRINTED[name].split()
    printed = list(zip(words[::3], words[1::3], words[2::3], strict=True))
    result = {layer.name: layer for layer in summarize(name).layers}
    for layer_name, shape, count in printed:
        *sides, channels = map(int, shape.split("x"))
        assert result[layer_name].output == (channels, *sides), layer_name
        assert count in ("-", f"{result[layer_name].parameters:,}"), layer_name
    names = [layer_name for layer_name, _, _ in printed]
    assert names == [layer_name for layer_name in result if layer_name in names]


@pytest.mark.parametrize("name", ["paper", "code2012", "caffenet", "bvlc", "owt"])
def test_summary_feature_map_sizes(name: str) -> None:
    summary = summarize(name)
    assert [layer(summary, box).output[1:] for box in BOXES] == [(n, n) for n in (55, 27, 27, 13, 13, 13, 13, 6)]
    channels = [64, 64, 192, 192, 384, 256, 256, 256] if name == "owt" else [96, 96, 256, 256, 384, 384, 256, 256]
    assert [layer(summary, box).output[0] for box in BOXES] == channels
    assert [layer(summary, bar).output for bar in BARS] == [(9216,), (4096,), (4096,), (1000,)]


@pytest.mark.parametrize(
    ("variant", "name", "formula"),
    [
        *(  # tutorial 000 calculates each of these
            ("scratch", name, formula)
            for name, formula in {
                "conv1": "(227 + 2*0 - 11) / 4 + 1 = 55",
                "pool1": "(55 + 2*0 - 3) / 2 + 1 = 27",
                "conv2": "(27 + 2*2 - 5) / 1 + 1 = 27",
                "pool2": "(27 + 2*0 - 3) / 2 + 1 = 13",
                "conv3": "(13 + 2*1 - 3) / 1 + 1 = 13",
                "conv4": "(13 + 2*1 - 3) / 1 + 1 = 13",
                "conv5": "(13 + 2*1 - 3) / 1 + 1 = 13",
                "pool5": "(13 + 2*0 - 3) / 2 + 1 = 6",
                "flatten": "6 * 6 * 256 = 9216",
            }.items()
        ),
        ("annotated", "conv1", "(224 + 2*0 - 11) / 4 + 1 = 54.25 -> 54"),
        ("annotated", "pool1", "(54 + 2*0 - 3) / 2 + 1 = 26.5 -> 26"),
        ("annotated", "flatten", "5 * 5 * 256 = 6400"),
        ("owt", "conv1", "(224 + 2*2 - 11) / 4 + 1 = 55.25 -> 55"),
        ("code2012", "pad1", "224 + 3 = 227"),
        ("code2012", "conv1", "(227 + 2*0 - 11) / 4 + 1 = 55"),
        ("paper", "conv2", "(27 + 2*2 - 5) / 1 + 1 = 27"),
        ("paper", "fc6", "9216 * 4096 + 4096 = 37752832"),
        ("cifar10", "norm1", ""),
        ("cifar10", "relu1", ""),
        ("cifar10", "dropout7", ""),
    ],
)
def test_summary_formulas(variant: str, name: str, formula: str) -> None:
    assert layer(summarize(variant), name).formula == formula


@pytest.mark.parametrize("name", NAMES)
def test_summary_formulas_are_true(name: str) -> None:
    for layer in summarize(name).layers:
        if not layer.formula:
            assert layer.kind in {"ReLU", "dropout"} or layer.kind.endswith("normalisation")
            continue
        left, value, *rounded = re.split(" = | -> ", layer.formula)
        size = layer.parameters if layer.kind == "dense" else layer.output[-1]
        assert eval(left) == float(value)
        assert int(rounded[0] if rounded else value) == int(float(value)) == size


def test_summary_layer_kinds() -> None:
    assert {layer.kind for name in NAMES for layer in summarize(name).layers} == {
        *("convolution", "max pooling", "zero padding", "flatten", "dense", "ReLU", "dropout"),
        *("batch normalisation", "local response normalisation", "map normalisation"),
    }
    tanh = summarize(replace(VARIANTS["owt"], activation="tanh"))
    assert layer(tanh, "tanh1").kind == "tanh"


def test_summary_groups() -> None:
    grouped = {name: {f.name for f in summarize(name).layers if f.groups == 2} for name in NAMES}
    convolutions = {"conv2", "conv4", "conv5"}
    assert grouped.pop("paper") == convolutions | {"norm1", "norm2"}
    assert grouped.pop("code2012") == convolutions | {"norm1", "norm2"}
    assert grouped.pop("caffenet") == grouped.pop("bvlc") == convolutions
    assert not any(grouped.values())


@pytest.mark.parametrize("name", NAMES)
def test_summary_table_is_aligned_within_110_columns(name: str) -> None:
    summary = summarize(name)
    lines = summary.table().splitlines()
    size = VARIANTS[name].input_size
    assert lines[0].startswith(f"{name}: input {size} x {size} x 3")
    assert ("2 towers" in lines[0]) == (TOWERS[name] == 2) == ("groups" in lines[2])
    assert max(map(len, lines)) <= 110
    counts = [("parameters", summary.parameters), ("trainable", summary.trainable)]
    counts += [("not trainable", summary.parameters - summary.trainable), ("activations", summary.activations)]
    assert [line[:14].rstrip() for line in lines[-4:]] == [name for name, _ in counts]
    assert [int(line[14:].split()[0].replace(",", "")) for line in lines[-4:]] == [count for _, count in counts]
    assert len({line.index("iB") for line in lines[-4:]}) == 1
    end = lines[2].index("parameters") + len("parameters")
    for line, layer in zip(lines[3:], summary.layers, strict=False):
        assert line[:end].split()[0] == layer.name
        assert line[:end].endswith(f" {layer.parameters:,}")
        assert line[end:].strip() == layer.formula


def test_summary_allocates_nothing_and_draws_no_random_numbers() -> None:
    before = torch.random.get_rng_state()
    assert summarize("owt", 10**9).parameters > 4e12
    assert torch.equal(torch.random.get_rng_state(), before)


# The drawing


@mostly_long("name", NAMES, "paper")
def test_plot_writes_svg_and_png_with_a_box_per_layer_and_tower(name: str, tmp_path: Path) -> None:
    summary = summarize(name)
    for suffix in ("svg", "png"):
        save(summary, tmp_path / f"drawing.{suffix}")
    with Image.open(tmp_path / "drawing.png") as image:
        image.load()
        assert image.format == "PNG"
        assert image.width > image.height > 500
        assert len(image.convert("RGB").getcolors(1 << 24) or ()) > 20
    root = ElementTree.parse(tmp_path / "drawing.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    boxes, bars = ([part for part in parts if part in {layer.name for layer in summary.layers}] for parts in (BOXES, BARS))
    assert {"input", *boxes, *bars, f"AlexNet: {name}"} <= set(texts)
    ids = {element.get("id") for element in root.iter()}
    for box in boxes:
        rows = {row for row in range(1, 5) if f"{box}-{row}" in ids}
        assert rows == set(range(1, TOWERS[name] + 1)), box
        channels = layer(summary, box).output[0]
        assert texts.count(str(channels // TOWERS[name])) >= TOWERS[name]
    assert all(f"{bar}-1" in ids and f"{bar}-2" not in ids for bar in ("input", *bars))


@mostly_long("name", NAMES, "paper", "scratch")
def test_plot_text_does_not_overlap(name: str) -> None:
    figure = draw(summarize(name))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # puts the legend in its place
    renderer = canvas.get_renderer()
    (axes,) = figure.axes
    legend = axes.get_legend()
    assert legend is not None
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in (*axes.texts, *legend.get_texts())]
    for text, box in boxes:
        assert figure.bbox.x0 + 10 < box.x0 < box.x1 < figure.bbox.x1 - 10, text
        assert figure.bbox.y0 + 10 < box.y0 < box.y1 < figure.bbox.y1 - 10, text
    for (one, box), (other, other_box) in combinations(boxes, 2):
        assert not box.overlaps(other_box), (one, other)


@pytest.mark.long
def test_plot_lines_between_towers() -> None:
    def crossing(name: str) -> tuple[int, int]:
        """Lines in the legend's colour for another tower: to the four corners of a kernel, and the dashed ones of a norm."""
        lines = [line for line in draw(summarize(name)).axes[0].lines if line.get_color() == "#d55e00"]
        dashed = [line for line in lines if line.is_dashed()]
        return len(lines) - len(dashed), len(dashed)

    assert crossing("paper") == (8, 0)  # conv3 alone: the corners of a kernel, from each tower to the other
    assert crossing("caffenet") == crossing("bvlc") == (8, 2)  # and two norms that see all channels
    assert crossing("owt") == (0, 0)


@mostly_long("towers", [1, 4], 4)
def test_plot_of_custom_variant(towers: int, tmp_path: Path) -> None:
    row = replace(VARIANTS["paper"], name="<$mine$>", towers=towers, input_size=96, activation="tanh", pool=(2, 2))
    save(summarize(row, 100_000), tmp_path / "mine.svg")
    root = ElementTree.parse(tmp_path / "mine.svg").getroot()
    assert "AlexNet: <$mine$>" in [element.text for element in root.iter()]
    assert {f"conv1-{row + 1}" for row in range(towers)} <= {element.get("id") for element in root.iter()}


def test_plot_is_reproducible(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        save(summarize("owt"), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


@pytest.mark.parametrize("name", ["x.pdf", "x", "x.svg.gz"])
def test_plot_of_other_suffix_is_an_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(AlexNetError, match=r"must end in \.svg or \.png"):
        save(summarize("owt"), tmp_path / name)
    assert not list(tmp_path.iterdir())


# The commands


def test_summary_command_prints_table_or_json(run: Run) -> None:
    assert run("summary", "paper") == (summarize("paper").table() + "\n", "")
    result = json.loads(run("summary", "annotated", "--classes", 3, "--json")[0])
    assert list(result) == ["variant", "input", "parameters", "trainable", "bytes", "layers"]
    assert (result["variant"], result["input"]) == ("annotated", [3, 224, 224])
    keys = ["name", "kind", "output", "parameters", "formula", "torchvision", "receptive_field"]
    assert all(list(row) == keys for row in result["layers"])
    assert result["layers"][0] == {
        "name": "conv1",
        "kind": "convolution",
        "output": [96, 54, 54],
        "parameters": 34_944,
        "formula": "(224 + 2*0 - 11) / 4 + 1 = 54.25 -> 54",
        "torchvision": None,
        "receptive_field": {"size": 11, "stride": 4, "offset": 5.0, "padding": 0},
    }
    assert result["layers"][-1]["output"] == [3]
    assert result["parameters"] == sum(row["parameters"] for row in result["layers"])


def test_plot_command_writes_both_files_or_one(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("plot", "owt", "--classes", 7) == ("owt.svg\nowt.png\n", "")
    assert "7 classes out" in Path("owt.svg").read_text()
    assert run("plot", "owt", "--out", tmp_path / "mine.PNG") == (f"{tmp_path / 'mine.PNG'}\n", "")
    assert {path.name for path in tmp_path.iterdir()} == {"owt.svg", "owt.png", "mine.PNG"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("summary", "papper"), "did you mean 'paper'"),
        (("plot", "owt", "--out", "x.pdf"), "must end in .svg or .png"),
        (("plot", "owt", "--out", "nowhere/x.svg"), "cannot write nowhere/x.svg: there is no folder nowhere"),
    ],
)
def test_summary_and_plot_errors_are_one_line(arguments: tuple[str, ...], message: str, run: Run) -> None:
    out, errors = run(*arguments, code=1)
    assert out == ""
    (line,) = errors.splitlines()
    assert line.startswith("alexnet: ")
    assert message in line


def test_summary_of_no_classes_is_usage_error(run: Run) -> None:
    assert "--classes" in run("summary", "owt", "--classes", 0, code=2)[1]


@mostly_long("name", NAMES, "paper", "cifar10", "four-layer")
def test_receptive_fields_are_those_of_gradients(name: str) -> None:
    """With positive weights and mean pooling, the gradient of a value reaches exactly the pixels on which it depends."""
    network = AlexNet(name, width=1 / 32).double().eval()
    row, size = network.row, network.row.input_size
    for layer_name, module in list(network.features.named_children()):
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
        elif isinstance(module, nn.MaxPool2d):
            pool = nn.AvgPool2d(module.kernel_size, module.stride, ceil_mode=row.ceil_mode)
            network.features.add_module(layer_name, pool)
    images = torch.full((1, 3, size, size), 0.5, dtype=torch.float64, requires_grad=True)
    layers = [layer for layer in summarize(name).layers if len(layer.output) == 3]
    with torch.enable_grad():
        maps = network.activations(images, [layer.name for layer in layers])[1]
    first, last = 0, size  # pixels that reach the layer: at the border, some are in no window
    for layer in layers:
        field, values, side = layer.field, maps[layer.name], layer.output[1]
        first, last = max(first, -field.padding), min(last, (side - 1) * field.stride + field.size - field.padding)
        for at in ((0, 0), (side // 2, side - 1), (side - 1, side // 3)):
            starts = [position * field.stride - field.padding for position in at]
            expected = [list(range(max(start, first), min(start + field.size, last))) for start in starts]
            (gradient,) = torch.autograd.grad(values[:, :, at[0], at[1]].sum(), images, retain_graph=True)
            pixels = gradient[0].abs().amax(0)
            touched = [pixels.amax(axis).nonzero().flatten().tolist() for axis in (1, 0)]
            assert touched == (expected if all(expected) else [[], []]), (layer.name, at)


def test_receptive_fields_of_paper() -> None:
    """Computed by hand: window after window, each as far apart as the strides before it multiply to."""
    fields = {layer.name: layer.field for layer in summarize("paper").layers}
    first = [(fields[name].size, fields[name].stride, fields[name].padding) for name in ("conv1", "pool1", "conv2", "pool2")]
    assert first == [(11, 4, 0), (19, 8, 0), (51, 8, 16), (67, 16, 16)]
    assert fields["conv5"].to_json() == {"size": 163, "stride": 16, "offset": 17.0, "padding": 64}
    assert fields["relu5"] == fields["conv5"]
    assert fields["fc8"] == fields["flatten"]
    assert (fields["flatten"].size, fields["flatten"].padding) == (355, 64)
    sees = {line.split()[0]: line.split() for line in summarize("paper").table().splitlines()[3:-5]}
    assert "163" in sees["conv5"]
    assert "all" in sees["fc6"]


def test_summary_shows_torchvisions_names_where_the_layers_are_its_own() -> None:
    names = [layer.torchvision for layer in summarize("owt").layers]
    flat = names.index(None)
    assert names[:flat] == [f"features.{i}" for i in range(13)]
    assert names[flat + 1 :] == [f"classifier.{i}" for i in range(7)]
    assert "pool5 features.12 max pooling" in " ".join(summarize("owt").table().split())
    for name in set(NAMES) - {"owt"}:
        assert {layer.torchvision for layer in summarize(name).layers} == {None}
        assert "torchvision" not in summarize(name).table().partition("\n")[2]
