"""Typeset formulas as SVG: a MkDocs hook (`hooks` in mkdocs.yml).

A formula is TeX between two lines of `$$`, which GitHub and Jupyter also understand. Matplotlib draws it, so that pages need
neither a script nor a font.
"""

from __future__ import annotations

import html
import re

from matplotlib.path import Path
from matplotlib.textpath import TextPath

# A block of code, which stays as it is, or a formula.
FORMULA = re.compile(
    r"^ *(?P<fence>`{3,}|~{3,}).*?^ *(?P=fence)|^\$\$[ \t]*\n(?P<tex>.+?)\n\$\$[ \t]*$", re.MULTILINE | re.DOTALL
)
COMMANDS = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C", Path.CLOSEPOLY: "Z"}
SIZE, MARGIN = 16, 2  # pixels


def svg(formula: str) -> str:
    """Return a formula in TeX as an SVG element in the colour of the text."""
    if "\n\n" in formula:
        raise ValueError(f"the formula {formula.splitlines()[0]!r} holds an empty line: close it with a line of $$")
    path = TextPath((0, 0), f"${' '.join(formula.split())}$", size=SIZE)
    box = path.get_extents().padded(MARGIN)
    parts = []
    for points, code in path.iter_segments(curves=True, simplify=False):
        closes = code == Path.CLOSEPOLY
        numbers = [] if closes else [f"{value:.2f}" for x, y in points.reshape(-1, 2) for value in (x, -y)]
        parts.append(COMMANDS[code] + " ".join(numbers))
    view = f"{box.x0:.1f} {-box.y1:.1f} {box.width:.1f} {box.height:.1f}"
    return (
        f'<svg role="img" aria-label="{html.escape(formula)}" viewBox="{view}" width="{box.width:.0f}" '
        f'style="max-width: 100%" fill="currentColor"><path d="{"".join(parts)}"/></svg>'
    )


def on_page_markdown(markdown: str, **_: object) -> str:
    """Replace each formula."""
    return FORMULA.sub(lambda found: f'<p class="formula">{svg(found["tex"])}</p>' if found["tex"] else found[0], markdown)
