"""Run the notebooks of docs/ and compare their output with the output stored in them.

    python -m proof.notebooks [NOTEBOOK…]    store the new output (`make notebooks`); needs ALEXNET_TEST_DATA

Each runs in a separate process and temporary folder. Text must be identical, and images must look the same. In cells tagged
`varies`, with figures that depend on the machine or on chance, only the kinds of outputs must be the same, and the cell itself
asserts what must hold. Standard error and HTML are not stored.
"""

from __future__ import annotations

import base64
import io
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import numpy as np
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

DOCS = Path(__file__).parent.parent / "docs"
NOTEBOOKS = sorted(DOCS.rglob("*.ipynb"))
TRAINED = DOCS / "tutorials" / "trained"  # the finished trainings, which the notebooks show
SECONDS = 900  # for a cell; a busy machine takes several times as long as a quiet one
SIDE, LEVELS = 64, 4.0  # images are compared at this size in pixels, and may differ by this many grey levels on average


def read(path: Path) -> NotebookNode:
    """Return a notebook as it is stored."""
    return nbformat.read(path, as_version=4)


def execute(stored: NotebookNode, data: str) -> NotebookNode:
    """Return the notebook after a new run, without anything that differs from run to run; `data` is the folder of real images.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook = nbformat.from_dict(stored)
    with tempfile.TemporaryDirectory(prefix="alexnet-notebook-") as folder:
        (Path(folder) / "trained").symlink_to(TRAINED)
        own = {"ALEXNET_DATA": data, "ALEXNET_TEST_DATA": data, "ALEXNET_CACHE": f"{folder}/cache", "IPYTHONDIR": folder}
        kernel = AsyncKernelManager(kernel_name="python3", transport="ipc", connection_file=f"{folder}/kernel.json")
        place = {"metadata": {"path": folder}}
        client = NotebookClient(
            notebook,
            km=kernel,
            resources=place,
            timeout=SECONDS,
            record_timing=False,
            coalesce_streams=True,  # the output of one cell may come in parts
        )
        client.execute(env=os.environ | own, cleanup_kc=True)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                output.get("data", {}).pop("text/html", None)
    return notebook


def differences(stored: NotebookNode, fresh: NotebookNode) -> Iterator[str]:
    """Yield the differences between a notebook after a new run and as stored, a line or two per cell."""
    for number, (old, new) in enumerate(zip(stored.cells, fresh.cells, strict=True), 1):
        if old.cell_type != "code":
            continue
        before, after = contents(old), contents(new)
        varies = "varies" in old.metadata.get("tags", ())
        if varies and "assert " not in old.source:
            yield f"cell {number} varies, and asserts nothing"
        if [kind for kind, _ in before] != [kind for kind, _ in after]:
            yield f"cell {number} gives {[kind for kind, _ in after]}, stored are {[kind for kind, _ in before]}"
        elif not varies:
            for (kind, then), (_, now) in zip(before, after, strict=True):
                if kind == "text/plain" and then != now:
                    yield f"cell {number} prints\n{now}\nstored is\n{then}"
                if kind == "image/png" and not alike(then, now):
                    yield f"cell {number} draws another picture"


def contents(cell: NotebookNode) -> list[tuple[str, str]]:
    """Return the outputs of a cell, each as its kind and content; of an output with an image, only the image."""
    found = []
    for output in cell.outputs:
        data = output.get("data", {"text/plain": output.get("text", "")})
        kind = next(kind for kind in ("image/png", "text/plain") if kind in data)
        found.append((kind, data[kind]))
    return found


def alike(then: str, now: str) -> bool:
    """Return whether two images, PNG in base64, look the same: other versions of a library draw text slightly differently."""
    one, two = (Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB") for text in (then, now))
    if not np.allclose(one.size, two.size, rtol=0.05):
        return False
    small = [np.asarray(image.resize((SIDE, SIDE)), dtype=float) for image in (one, two)]
    return bool(np.abs(small[0] - small[1]).mean() < LEVELS)


def main(names: list[str]) -> None:
    """Run the given notebooks, or all, and store their output."""
    for path in [Path(name) for name in names] or NOTEBOOKS:
        start = time.monotonic()
        nbformat.write(execute(read(path), os.environ["ALEXNET_TEST_DATA"]), path)
        print(f"{path.name}: {time.monotonic() - start:.0f} s, {path.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
