import numpy as np
import pandas as pd
import pytest

from src.analysis.published_selection import tabulate_sae1n


@pytest.mark.golden
def test_the_table_is_the_published_one(golden_dir):
    """The reference computes in float32; the README's tolerances: p to 1e-4, the rest to 1e-5."""
    folder = golden_dir / "stats" / "ttest"
    golden = np.load(folder / "ttest.npz")
    labels = dict(zip(golden["slide_ids"].tolist(), golden["labels"].tolist(), strict=True))
    train = [one for one in golden["train_ids"].tolist() if labels[one].lower() in ("tumor", "normal")]
    maxima = np.stack([golden[f"latents/{item_id}"].max(axis=0) for item_id in train])
    is_positive = np.array([labels[item_id].lower() == "tumor" for item_id in train])
    table = tabulate_sae1n(maxima, is_positive, "tumor", "normal")
    expected = pd.read_csv(folder / "sae_analysis_t_test.csv")
    assert table.columns.tolist() == expected.columns.tolist()
    assert table["unit_id"].tolist() == expected["unit_id"].tolist()
    for column in expected.columns[1:]:
        tolerance = 1e-4 if column == "p_value" else 1e-5
        np.testing.assert_allclose(table[column], expected[column], rtol=tolerance, atol=1e-6, err_msg=column)
    by_unit = table.set_index("unit_id").sort_index()
    np.testing.assert_allclose(by_unit["t_statistic"], golden["float64/t"], rtol=1e-6)
    np.testing.assert_allclose(by_unit["p_value"], golden["float64/p"], rtol=1e-6)


def test_neurons_that_are_higher_in_normal_slides_count_and_constant_ones_are_last():
    maxima = np.array([[0.0, 3.0, 1.0], [0.1, 3.1, 1.0], [2.0, 0.0, 1.0], [2.1, 0.1, 1.0]], np.float32)
    table = tabulate_sae1n(maxima, np.array([True, True, False, False]), "tumor", "normal")
    assert table["unit_id"].tolist() == [1, 0, 2]
    assert table["t_statistic"][1] < 0
    assert table.loc[2, ["t_statistic", "p_value"]].isna().all()
    assert table["tumor_mean_activation"].tolist() == pytest.approx([3.05, 0.05, 1.0])
