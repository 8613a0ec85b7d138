"""A study's table as a paper prints it: mean and spread of every method, beside published ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from src.analysis.methods import Method
from src.csv_tables import read_table

_COLUMNS = ("method", "metric", "mean", "sd")


def read_published(path: str | Path) -> pd.DataFrame:
    """Reads published numbers: a csv with columns method, metric, mean and sd, and optionally label.

    `method` is ours (`max_activations`) and empty where we have none; `label` is what the paper calls it. An empty sd
    means that none is published.

    Returns:
        method, label, metric, mean and sd (float), in the order of the file.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when a column is missing or a number is none.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"Expected published numbers at {path}, found no such file. Give summary.published=<csv>."
        )
    table = read_table(path)
    if missing := [name for name in _COLUMNS if name not in table]:
        raise ValueError(f"Expected columns {', '.join(_COLUMNS)} in {path}, got {list(table)}, without {missing}.")
    frame = pd.DataFrame({**table, "label": table.get("label", table["method"])})
    try:
        return frame.assign(**{name: pd.to_numeric(frame[name].replace("", None)) for name in ("mean", "sd")})
    except ValueError as error:
        raise ValueError(f"Expected numbers as mean and sd in {path}, got another: {error}.") from error


def set_beside(
    summary: pd.DataFrame, methods: Mapping[str, Method], metrics: Sequence[str], published: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Returns a row a method with mean and sd over folds of each metric, and the published ones with the difference.

    Args:
        summary: of `summarize`.
        methods: ours by name, in the table's order.
        metrics: in the table's order.
        published: of `read_published`; methods that only it has come last.

    Returns:
        method, and for each metric `<metric>`, `<metric>_sd`; with published numbers `<metric>_published`,
        `<metric>_published_sd` and `<metric>_difference` (ours less the published).
    """
    ours: Any = summary.set_index(["method", "metric"])
    labels = {name: method.label for name, method in methods.items()}
    theirs: Any = None
    if published is not None:
        # A method that only the paper has is named by its label.
        names = published["method"].where(published["method"] != "", published["label"])
        labels = {name: labels.get(name, "") for name in [*labels, *names]} | dict(
            zip(names, published["label"], strict=True)
        )
        theirs = published.assign(method=names).set_index(["method", "metric"])
    rows = []
    for name, label in labels.items():
        row: dict[str, object] = {"method": label}
        for metric in metrics:
            mean, sd = (ours[key].get((name, metric)) for key in ("mean", "sd"))
            row |= {metric: mean, f"{metric}_sd": sd}
            if theirs is not None:
                their_mean, their_sd = (theirs[key].get((name, metric)) for key in ("mean", "sd"))
                row |= {f"{metric}_published": their_mean, f"{metric}_published_sd": their_sd}
                row[f"{metric}_difference"] = None if mean is None or their_mean is None else mean - their_mean
        rows.append(row)
    return pd.DataFrame(rows)


def to_latex(table: pd.DataFrame, metrics: Sequence[str], caption: str) -> str:
    r"""Returns the table of `set_beside` in LaTeX, for `\usepackage{booktabs}`.

    Args:
        table: of `set_beside`.
        metrics: as there.
        caption: of the table.
    """
    kinds = {"": "ours", "_published": "published"}
    kinds = {suffix: head for suffix, head in kinds.items() if f"{metrics[0]}{suffix}" in table}
    columns = [(metric, suffix) for metric in metrics for suffix in kinds]
    heads = " & ".join(rf"\multicolumn{{{len(kinds)}}}{{c}}{{{_metric_label(metric)}}}" for metric in metrics)
    n, width = len(metrics), len(kinds)
    rules = "".join(rf"\cmidrule(lr){{{2 + i * width}-{1 + (i + 1) * width}}}" for i in range(n))
    body = [
        " & ".join([_escape(row["method"]), *(_cell(row[m + kind], row[f"{m}{kind}_sd"]) for m, kind in columns)])
        + r" \\"
        for row in table.to_dict("records")
    ]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_escape(caption)}}}",
        rf"\begin{{tabular}}{{l{'c' * len(columns)}}}",
        r"\toprule",
        rf" & {heads} \\",
        *([rules, " & ".join(["Method", *(kinds[kind] for _, kind in columns)]) + r" \\"] if width > 1 else []),
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _metric_label(metric: str) -> str:
    return {"auroc": "AUROC"}.get(metric, metric.replace("_", " ").capitalize())


def _cell(mean: float | None, sd: float | None) -> str:
    if mean is None or pd.isna(mean):
        return "--"
    return f"${mean:.3f}$" if sd is None or pd.isna(sd) else rf"${mean:.3f} \pm {sd:.3f}$"


def _escape(text: str) -> str:
    for character in "&%$#_{}":
        text = text.replace(character, f"\\{character}")
    return text
