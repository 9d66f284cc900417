"""Formulas on the site are typeset when it is built, without a script."""

from __future__ import annotations

import runpy
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
HOOK = runpy.run_path(str(DOCS / "formulas.py"))
FORMULAS = [
    (page.name, found["tex"])
    for page in sorted(DOCS.glob("*.md"))
    for found in HOOK["FORMULA"].finditer(page.read_text("utf-8"))
    if found["tex"]
]


@pytest.mark.parametrize("tex", [tex for _, tex in FORMULAS], ids=[page for page, _ in FORMULAS])
def test_formulas_are_drawn(tex: str) -> None:
    element = ET.fromstring(HOOK["svg"](tex))
    assert element.get("aria-label") == tex
    _, _, width, height = map(float, element.get("viewBox", "").split())
    assert 20 < width < 700
    assert 20 < height < 80
    assert len(element[0].get("d", "")) > 100


def test_formulas_become_elements_and_other_dollars_stay() -> None:
    text = "Costs $$ 5.\n\n$$\nx^2 < y\n$$\n\n`$$`"
    page = HOOK["on_page_markdown"](text)
    assert page.startswith('Costs $$ 5.\n\n<p class="formula"><svg ')
    assert 'aria-label="x^2 &lt; y"' in page
    assert page.endswith("</svg></p>\n\n`$$`")


@pytest.mark.parametrize("fence", ["```", "````", "  ~~~"])
def test_formulas_in_code_stay(fence: str) -> None:
    text = f"{fence}tex\n$$\nx^2\n$$\n{fence}\n"
    page = HOOK["on_page_markdown"](f"{text}\n$$ \nx\n= y\n$$\n\n{text}")
    assert page.count(text) == 2
    assert page.count("<svg") == 1


def test_formula_that_is_not_closed_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the formula 'x\^2' holds an empty line: close it"):
        HOOK["on_page_markdown"]("$$\nx^2\n\nMore text\n\n$$\ny\n$$\n")
