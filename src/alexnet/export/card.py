"""The model card of an export: a README.md whose front matter the Hugging Face hub reads."""

import json
import re
from pathlib import Path
from typing import Any

import alexnet
from alexnet.data.dataset import Dataset
from alexnet.errors import counted, format_names
from alexnet.files import read_json, write_output
from alexnet.run import ModelConfig, RunFolder

MADE = "<!-- made by alexnet -->"
SPLITS = {"train": "training", "val": "validation", "test": "test"}
LOWEST = 3  # classes that are found least often
PYTHON = """\
```python
import json, numpy, onnxruntime
from PIL import Image
model = onnxruntime.InferenceSession("FILE")
probabilities, *known = model.run(None, {"image": numpy.asarray(Image.open("photo.jpg").convert("RGB"))})
print(json.loads(model.get_modelmeta().custom_metadata_map["labels"])[probabilities.argmax()], probabilities.max())
```"""
JAVASCRIPT = """\
```js
import * as ort from "onnxruntime-web"; // on the page: "./static/ort.js"
const { data, width, height } = context.getImageData(0, 0, canvas.width, canvas.height); // a photo on a canvas
const image = new ort.Tensor("uint8", data.filter((_, i) => i % 4 < 3), [height, width, 3]);
const session = await ort.InferenceSession.create("FILE");
const { probabilities } = await session.run({ image });
```"""


def write_card(
    path: Path, folder: RunFolder, config: ModelConfig, dataset: Dataset | None, file: str, overwrite: bool = False
) -> None:
    """Write the card of the exported `file` to `path`; the licence in a card that is there stays."""
    found = re.search(r"^license: *(.+)$", path.read_text(encoding="utf-8"), re.MULTILINE) if path.is_file() else None
    text = card(folder, config, dataset, file, found[1] if found else "unknown")
    write_output(path, lambda part: part.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n"), overwrite)


def card(folder: RunFolder, config: ModelConfig, dataset: Dataset | None, file: str, licence: str = "unknown") -> str:
    """Return the card: data, accuracy, limits, and how to use `file`."""
    summary: dict[str, Any] = read_json(folder.summary) if folder.summary.exists() else {}
    measured = {split: summary[split] for split in ("validation", "test") if summary.get(split)}
    name, data = folder.path.resolve().name, dataset.table.name if dataset else "unknown"
    front = {
        "library_name": "onnx",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "alexnet", "onnx"],
        "metrics": ["accuracy"],
        "model-index": [{"name": name, "results": [_result(data, split, found) for split, found in measured.items()]}],
    }
    trained = f", trained by the recipe `{summary['recipe']}` for {counted(summary['epochs'], 'epoch')}" if summary else ""
    parts = [
        f"An AlexNet (`{config.variant}`) that tells {counted(len(config.labels), 'class')} apart: "
        f"{format_names(config.labels)}. Made with alexnet {alexnet.__version__}{trained}.",
        "## Data\n\n" + (_data(dataset) if dataset else "The images were not at hand when the file was written."),
        "## Accuracy\n\n" + ("\n".join(_accuracy(measured)) if measured else "It was not measured."),
        "## Limits\n\n" + "\n".join(f"- {limit}" for limit in _limits(config, measured)),
        "## Licence\n\nWhoever publishes the file chooses it, at `license` above. The photos that the network was trained on "
        "may restrict the choice.",
        f"## Use\n\n{PYTHON}\n\n{JAVASCRIPT}".replace("FILE", file),
        MADE,
    ]
    lines = [f"license: {licence}", *(f"{key}: {json.dumps(value)}" for key, value in front.items())]  # JSON is YAML
    return "\n".join(["---", *lines, "---", "", f"# {name}", "", "\n\n".join(parts), ""])


def _result(data: str, split: str, found: dict[str, Any]) -> dict[str, Any]:
    """Return a result as the hub's `model-index` has it."""
    low, high = found["top1_interval"]
    metric = {"type": "accuracy", "name": f"top-1 (95 % interval: {low:.4f} to {high:.4f})", "value": found["top1"]}
    dataset = {"name": data, "type": data, "split": split}
    return {"task": {"type": "image-classification"}, "dataset": dataset, "metrics": [metric]}


def _data(dataset: Dataset) -> str:
    rows = [f"| {words} | {len(dataset.table.rows(split)):,} |" for split, words in SPLITS.items()]
    return f"{dataset.table.name}:\n\n| split | images |\n|---|---:|\n" + "\n".join(rows)


def _accuracy(measured: dict[str, dict[str, Any]]) -> list[str]:
    """Return the lines of a table, and the classes that are found least often."""
    lines = ["| images | top-1 | 95 % interval | top-5 | calibration error |", "|---|---:|---|---:|---:|"]
    for split, found in measured.items():
        low, high = found["top1_interval"]
        figures = f"{found['top1']:.1%} | {low:.1%} to {high:.1%} | {found['top5']:.1%} | {found['ece']:.3f}"
        lines.append(f"| {found['images']:,} of {split} | {figures} |")
    classes = sorted(list(measured.values())[-1]["per_class"].items(), key=lambda row: row[1]["recall"])
    lowest = ", ".join(f"{label} ({row['recall']:.1%})" for label, row in classes[:LOWEST])
    return [*lines, "", f"Found least often: {lowest}."]


def _limits(config: ModelConfig, measured: dict[str, dict[str, Any]]) -> list[str]:
    """Return what to know before the file is relied on."""
    known = "`known` is false for images that seem to show something else, but misses many of them."
    return [
        "It knows these classes alone, and its probabilities mean nothing for images of anything else. "
        + (known if config.known is not None else "It cannot tell such images."),
        *(
            ["The figures hold for images like those above; intervals cover the choice of images, not of the seed."]
            * bool(measured)
        ),
        f"Probabilities are calibrated with one temperature, {config.temperature:.4g}, fitted on the validation images.",
    ]
