"""The colours of all that is drawn, by name; without matplotlib, for those that draw without it."""

from __future__ import annotations

# Okabe and Ito's colours, told apart by colour-blind eyes; the page has a lighter twin of each for dark screens.
BLUE, ORANGE = "#0072b2", "#d55e00"
GREEN, PINK, AMBER, SKY = "#009e73", "#cc79a7", "#e69f00", "#56b4e9"
GREY = "#808080"
NEUTRAL = "#f7f7f7"  # of heat maps: neither for a label nor against it
