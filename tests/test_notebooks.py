"""Notebooks: stored outputs are current."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from proof import docs, notebooks

PAGE = runpy.run_path(str(notebooks.DOCS / "notebooks.py"))
DRAW = "import matplotlib.pyplot as plt\nplt.figure(figsize=(2, 2))\nplt.imshow([[0, {}]])\nplt.show()"


@pytest.mark.long
@pytest.mark.parametrize("path", notebooks.NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_outputs_are_current(path: Path, real_data: Path) -> None:
    stored = notebooks.read(path)
    wrong = list(notebooks.differences(stored, notebooks.execute(stored, str(real_data))))
    assert not wrong, "\n\n".join([*wrong, "make notebooks stores what they print today"])


def test_notebooks_are_clean() -> None:
    for path in notebooks.NOTEBOOKS:
        text, stored = path.read_text(encoding="utf-8"), notebooks.read(path)
        assert text == nbformat.writes(stored) + "\n", path.name
        assert len(text) < 200_000, path.name
        for cell in stored.cells:
            assert set(cell.metadata) <= {"tags", "alt"}, path.name
            for output in cell.get("outputs", ()):
                assert output.output_type != "error", path.name
                assert output.get("name") != "stderr", path.name
                text = str(output.get("text", ""))
                assert not re.search(r"(/tmp|/home|/root|/work|/Users)/|https?://", text), path.name


def test_notebook_links() -> None:
    for path in notebooks.NOTEBOOKS:
        text, pictures = PAGE["page"](notebooks.read(path), path.stem)
        for name in pictures:
            text = text.replace(f"]({name})", "]()")
        assert not list(docs.wrong_links(path, path.name, text))


@pytest.mark.long
def test_notebook_differences_are_detected(tmp_path: Path) -> None:
    cells = [
        new_markdown_cell("# A page"),
        new_code_cell("import sys, time\nprint(6)\ntime.sleep(0.5)\nprint(7)\nprint('of no interest', file=sys.stderr)"),
        new_code_cell("6 * 7"),
        new_code_cell(DRAW.format(1)),
        new_code_cell("import random\nassert (x := random.random()) < 1\nprint(x)", metadata={"tags": ["varies"]}),
    ]
    stored = notebooks.execute(new_notebook(cells=cells), str(tmp_path))
    again = notebooks.execute(stored, str(tmp_path))
    assert [notebooks.contents(cell) for cell in stored.cells[1:3]] == [[("text/plain", "6\n7\n")], [("text/plain", "42")]]
    assert stored.cells[4].outputs != again.cells[4].outputs
    assert list(notebooks.differences(stored, again)) == []

    again.cells[1].outputs[0].text = "43\n"
    again.cells[2].outputs[0].data["text/plain"] = "43"
    again.cells[3].outputs[0].data["image/png"] = drawn(tmp_path, DRAW.format(-1))
    again.cells[4].outputs = []
    text, value, picture, nothing = notebooks.differences(stored, again)
    assert text == "cell 2 prints\n43\n\nstored is\n6\n7\n"
    assert value == "cell 3 prints\n43\nstored is\n42"
    assert picture == "cell 4 draws another picture"
    assert nothing == "cell 5 gives [], stored are ['text/plain']"
    stored.cells[4].source = "print(7)"
    assert "cell 5 varies, and asserts nothing" in notebooks.differences(stored, stored)


@pytest.mark.long
def test_notebook_assertion_error_fails(tmp_path: Path) -> None:
    notebook = new_notebook(cells=[new_code_cell("assert 1 > 2", metadata={"tags": ["varies"]})])
    with pytest.raises(CellExecutionError):
        notebooks.execute(notebook, str(tmp_path))


@pytest.mark.long
def test_notebook_page(tmp_path: Path) -> None:
    cells = [new_markdown_cell("# A page\n\n[000](000-annotated.ipynb#the-photos)"), new_code_cell("print(1 + 1)")]
    cells.append(new_code_cell(DRAW.format(1), metadata={"alt": "Two squares"}))
    text, pictures = PAGE["page"](notebooks.execute(new_notebook(cells=cells), str(tmp_path)), "made-up")
    assert text.startswith('# A page\n\n<p class="notebook">')
    assert "```python\nprint(1 + 1)\n```\n\n```{.text .output .no-copy}\n2\n```\n" in text
    assert "\n![Two squares](made-up-1.png)\n" in text
    assert pictures["made-up-1.png"].startswith(b"\x89PNG")
    assert "[000](000-annotated.md#the-photos)" in PAGE["on_page_markdown"](text)


def drawn(folder: Path, source: str) -> str:
    """Return the image that some code draws."""
    (cell,) = notebooks.execute(new_notebook(cells=[new_code_cell(source)]), str(folder)).cells
    return str(cell.outputs[0].data["image/png"])
