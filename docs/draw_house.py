"""Draw the house of built.md into figures/house.svg: `python docs/draw_house.py`. tests/test_docs.py holds it to the code."""

from __future__ import annotations

from html import escape
from pathlib import Path

# By floor, from the top: rooms, each with what it does.
ROOMS = {
    6: [("cli", "a command each: parse, call, print")],
    5: [("api", "train, load, Run"), ("printed", "tables for people")],
    4: [("training", "makes a run"), ("use", "uses a run")],
    3: [("measure", "how good it is"), ("run", "the run folder")],
    2: [("data", "files to batches"), ("network", "a row to a network"), ("recipe", "settings")],
    1: [
        ("errors", "one clear line"),
        ("progress", "time left"),
        ("temporary", "being written"),
        ("colours", "by name"),
        ("outputs", "nothing replaced"),
        ("paths", "as typed"),
        ("fonts", "every script"),
    ],
}
SHED = ("scratch", ("by hand,", "in NumPy"))
LEFT, WIDTH, STOREY, ROOF, GAP = 34, 400, 58, 74, 6


def room(x: float, y: float, width: float, name: str, lines: tuple[str, ...]) -> str:
    """Return one room: its name in type, what it does below."""
    middle = x + width / 2
    said = "".join(
        f'<text class="does" x="{middle:g}" y="{y + 38 + 14 * k:g}">{escape(line)}</text>' for k, line in enumerate(lines)
    )
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{STOREY - GAP + 14 * (len(lines) - 1):g}" rx="4"/>'
        f'<text class="room" x="{middle:g}" y="{y + 21:g}">{name}</text>{said}'
    )


def house() -> str:
    """Return the picture; its colours are the page's, so that it is right in light and in dark."""
    parts = []
    for row, (floor, rooms) in enumerate(ROOMS.items()):
        y, width = ROOF + row * STOREY, (WIDTH - GAP * (len(rooms) - 1)) / len(rooms)
        parts.append(f'<text class="floor" x="14" y="{y + 32}">{floor}</text>')
        parts += [room(LEFT + k * (width + GAP), y, width, name, (does,)) for k, (name, does) in enumerate(rooms)]
    ground = ROOF + len(ROOMS) * STOREY
    right, shed = LEFT + WIDTH + 24, ground - 2 * STOREY + 38
    parts.append(f'<path class="roof" d="M{LEFT - 8} {ROOF - 6} L{LEFT + WIDTH / 2:g} 8 L{LEFT + WIDTH + 8} {ROOF - 6} Z"/>')
    parts.append(f'<text class="room" x="{LEFT + WIDTH / 2:g}" y="{ROOF - 24}">alexnet</text>')
    parts.append(room(right, shed, 84, SHED[0], SHED[1]))
    parts.append(f'<path class="roof" d="M{right - 5} {shed - 6} L{right + 42} {shed - 30} L{right + 89} {shed - 6} Z"/>')
    parts.append(f'<path class="down" d="M{right + 42} {ROOF + 30} v{2.6 * STOREY:g} m-6 -10 l6 10 l6 -10"/>')
    parts.append(f'<text class="does" x="{right + 42}" y="{ROOF + 8}">a file</text>')
    parts.append(f'<text class="does" x="{right + 42}" y="{ROOF + 22}">imports</text>')
    parts.append(f'<path class="down" d="M4 {ground} H{right + 94}"/>')
    title = "Six floors, from cli at the top to errors on the ground, and scratch in a shed of its own; imports go down"
    box = f"0 0 {right + 98} {ground + 6}"
    return f'<svg class="house" viewBox="{box}" role="img" aria-label="{title}">{"".join(parts)}</svg>\n'


if __name__ == "__main__":
    (Path(__file__).parent / "figures" / "house.svg").write_text(house(), encoding="utf-8")
