"""One style for all figures: a palette that colour-blind readers can use, readable sizes, the same colour a method."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from src.files import write_atomically

# Okabe & Ito, "Color Universal Design" (2008): told apart by all common kinds of colour vision.
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE = (
    "#222222",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
GREY = "#9a9a9a"

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

# What a curve is called, its colour (what it reads) and its dash (how it pools).
_METHODS = {
    "neuron": ("Best neuron", VERMILLION, "-"),
    "channel": ("Best raw channel", BLUE, "-"),
    "random_neuron": ("Random neuron", GREY, "-"),
    "max_activations": ("Max MIL on activations", SKY, "--"),
    "attention_activations": ("Attention MIL on activations", SKY, "-"),
    "max_latents": ("Max MIL on latents", GREEN, "--"),
    "attention_latents": ("Attention MIL on latents", GREEN, "-"),
    "max_top_neurons": ("Max MIL on top neurons", PURPLE, "--"),
    "attention_top_neurons": ("Attention MIL on top neurons", PURPLE, "-"),
}


# Decorates a function that draws. Matplotlib reads its settings when a figure's parts are made, not when it is saved.
styled = mpl.rc_context(_STYLE)


def method_label(method: str) -> str:
    """Returns a method's name as a reader knows it."""
    return _METHODS[method][0] if method in _METHODS else method.replace("_", " ").capitalize()


def method_line(method: str) -> dict[str, Any]:
    """Returns the colour and dash that stand for a method in every figure."""
    _, color, dash = _METHODS.get(method, ("", BLACK, ":"))
    return {"color": color, "linestyle": dash}


def save_figure(figure: Figure, path: str | Path) -> None:
    """Writes `figure` as PNG, whole or not at all, and frees its memory."""
    with write_atomically(path) as temporary:
        figure.savefig(temporary, dpi=FIGURE_DPI, facecolor="white")
    figure.clear()
