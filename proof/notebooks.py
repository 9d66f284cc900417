"""Run the notebooks of docs/tutorials/ and compare what they print with what is stored in them.

    python -m proof.notebooks [NOTEBOOK…]    store what they print today (`make notebooks`); needs ALEXNET_TEST_DATA

Each runs in a process and a temporary folder of its own. Text must be the same to the letter, and pictures look the same. In
cells tagged `varies`, whose figures depend on the machine or on chance, only the kinds of outputs must be the same, and the
cell asserts what must hold. What goes to standard error is not kept.
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

NOTEBOOKS = sorted((Path(__file__).parent.parent / "docs" / "tutorials").glob("*.ipynb"))
SECONDS = 300  # for a cell
SIDE, LEVELS = 64, 4.0  # pictures are compared at so many pixels a side, and may differ by so many grey levels on average


def read(path: Path) -> NotebookNode:
    """Return a notebook as it is stored."""
    return nbformat.read(path, as_version=4)


def execute(stored: NotebookNode, data: str) -> NotebookNode:
    """Return the notebook run anew, with nothing in it that differs from run to run; `data` is the folder of real images.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook = nbformat.from_dict(stored)
    with tempfile.TemporaryDirectory(prefix="alexnet-notebook-") as folder:
        own = {"ALEXNET_DATA": data, "ALEXNET_TEST_DATA": data, "ALEXNET_CACHE": f"{folder}/cache", "IPYTHONDIR": folder}
        kernel = AsyncKernelManager(kernel_name="python3", transport="ipc", connection_file=f"{folder}/kernel.json")
        place = {"metadata": {"path": folder}}
        client = NotebookClient(
            notebook,
            km=kernel,
            resources=place,
            timeout=SECONDS,
            record_timing=False,
            coalesce_streams=True,  # what one cell prints may come in parts
        )
        client.execute(env=os.environ | own, cleanup_kc=True)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def differences(stored: NotebookNode, fresh: NotebookNode) -> Iterator[str]:
    """Yield in what a notebook that was run anew differs from what is stored, a line or two for each cell."""
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
    """Return the outputs of a cell, each as its kind and its content; of one with a picture, the picture."""
    found = []
    for output in cell.outputs:
        data = output.get("data", {"text/plain": output.get("text", "")})
        kind = next(kind for kind in ("image/png", "text/plain") if kind in data)
        found.append((kind, data[kind]))
    return found


def alike(then: str, now: str) -> bool:
    """Whether two pictures, PNG in base64, look the same: other versions of a library draw letters a little differently."""
    one, two = (Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB") for text in (then, now))
    if not np.allclose(one.size, two.size, rtol=0.05):
        return False
    small = [np.asarray(image.resize((SIDE, SIDE)), dtype=float) for image in (one, two)]
    return bool(np.abs(small[0] - small[1]).mean() < LEVELS)


def main(names: list[str]) -> None:
    """Run the notebooks named, or all, and store what they print."""
    for path in [Path(name) for name in names] or NOTEBOOKS:
        start = time.monotonic()
        nbformat.write(execute(read(path), os.environ["ALEXNET_TEST_DATA"]), path)
        print(f"{path.name}: {time.monotonic() - start:.0f} s, {path.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
