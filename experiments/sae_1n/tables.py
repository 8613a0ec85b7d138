"""Puts our numbers beside the published ones, from what task=summarize_cv left.

Run: python -m experiments.sae_1n.tables <folder of runs> [<study> ...]
"""

import sys
from pathlib import Path

import pandas as pd

PUBLISHED = Path(__file__).parent / "published"
_METRICS = ("accuracy", "auroc")


def collect(runs: Path, studies: list[str]) -> pd.DataFrame:
    """Returns a row a study, variant and method with our numbers, the published ones, and whether they agree.

    Agreement (`within_sd`) means that our mean is within one published standard deviation of the published mean; empty
    where none is published.

    Args:
        runs: the folder of runs.
        studies: names of presets.

    Raises:
        FileNotFoundError: when no study has a finished summary.
    """
    rows = []
    for study in studies:
        for path in sorted((runs / study).glob("*/summarize_cv/analysis/table.csv")):
            for row in pd.read_csv(path).to_dict("records"):
                for metric in _METRICS:
                    keys = (metric, f"{metric}_sd", f"{metric}_published", f"{metric}_published_sd")
                    ours, sd, published, published_sd = (float(row.get(key, float("nan"))) for key in keys)
                    named = {"study": study, "variant": path.parents[2].name, "method": row["method"], "metric": metric}
                    known = pd.notna(ours) and pd.notna(published_sd)
                    within = abs(ours - published) <= published_sd if known else None
                    numbers = {"ours": ours, "sd": sd, "published": published, "published_sd": published_sd}
                    rows.append(named | numbers | {"within_sd": within})
    if not rows:
        raise FileNotFoundError(
            f"Expected {runs}/<study>/<variant>/summarize_cv/analysis/table.csv of {', '.join(studies)}, found none. "
            "Make it with experiments/sae_1n/run.sh <study>."
        )
    return pd.DataFrame(rows)


if __name__ == "__main__":
    chosen = sys.argv[2:] or sorted(path.stem for path in PUBLISHED.glob("*.csv"))
    print(collect(Path(sys.argv[1]), chosen).to_string(index=False, float_format="{:.3f}".format, na_rep=""))
