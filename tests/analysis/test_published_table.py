import pandas as pd
import pytest

from src.analysis.methods import parse_methods
from src.analysis.published_table import read_published, set_beside, to_latex

METHODS = parse_methods(["max_activations", "neuron"], ["max"])


@pytest.fixture
def summary():
    rows = [("max_activations", "accuracy", 0.9, 0.01), ("max_activations", "auroc", 0.95, 0.02)]
    rows += [("neuron", "accuracy", 0.7, float("nan")), ("neuron", "auroc", 0.8, 0.1)]
    return pd.DataFrame(rows, columns=["method", "metric", "mean", "sd"])


@pytest.fixture
def published(tmp_path):
    lines = ["method,label,metric,mean,sd", "max_activations,MaxMIL,auroc,0.96,0.01", ",MambaMIL,auroc,0.97,"]
    (tmp_path / "published.csv").write_text("\n".join(lines) + "\n")
    return read_published(tmp_path / "published.csv")


def test_published_numbers_stand_beside_ours(summary, published):
    table = set_beside(summary, METHODS, ["auroc"], published).set_index("method")
    assert list(table.index) == ["MaxMIL", "Best neuron", "MambaMIL"]
    assert table.loc["MaxMIL", "auroc_difference"] == pytest.approx(-0.01)
    assert table.loc["Best neuron", "auroc"] == 0.8
    assert pd.isna(table.loc["Best neuron", "auroc_published"])
    assert pd.isna(table.loc["MambaMIL", "auroc"])


def test_latex_has_a_line_a_method_and_rules_of_booktabs(summary, published):
    text = to_latex(
        set_beside(summary, METHODS, ["accuracy", "auroc"], published), ["accuracy", "auroc"], "50 % of a_b"
    )
    assert r"\caption{50 \% of a\_b}" in text
    assert r" & \multicolumn{2}{c}{Accuracy} & \multicolumn{2}{c}{AUROC} \\" in text
    assert r"\cmidrule(lr){2-3}\cmidrule(lr){4-5}" in text
    assert r"MaxMIL & $0.900 \pm 0.010$ & -- & $0.950 \pm 0.020$ & $0.960 \pm 0.010$ \\" in text
    assert r"MambaMIL & -- & -- & -- & $0.970$ \\" in text
    alone = to_latex(set_beside(summary, METHODS, ["auroc"]), ["auroc"], "Ours")
    assert r"Best neuron & $0.800 \pm 0.100$ \\" in alone
    assert "published" not in alone


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method,mean,sd\nm,1,1\n", r"columns method, metric, mean, sd .* without \['metric'\]"),
        ("method,metric,mean,sd\nm,auroc,high,1\n", "numbers as mean and sd"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text, message):
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_published(tmp_path / "p.csv")
    with pytest.raises(FileNotFoundError, match=r"summary\.published"):
        read_published(tmp_path / "nothing.csv")
