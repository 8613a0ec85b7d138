"""One style for all figures: a palette that colour-blind readers can use, and readable sizes."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from src.files import write_atomically

# Okabe & Ito, "Color Universal Design" (2008): told apart by all common kinds of colour vision.
BLACK, GREY, ORANGE, SKY = "#222222", "#9a9a9a", "#E69F00", "#56B4E9"
GREEN, BLUE, VERMILLION, PURPLE = "#009E73", "#0072B2", "#D55E00", "#CC79A7"

_STYLE: Any = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.labelsize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.edgecolor": "#666666",
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "legend.fontsize": 10,
    "lines.linewidth": 1.8,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
}
FIGURE_DPI = 150

# Decorates a function that draws. Matplotlib reads its settings when a figure's parts are made, not when it is saved.
styled = mpl.rc_context(_STYLE)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Writes `figure` as PNG, whole or not at all, and frees its memory."""
    with write_atomically(path) as temporary:
        figure.savefig(temporary, dpi=FIGURE_DPI, facecolor="white")
    figure.clear()
