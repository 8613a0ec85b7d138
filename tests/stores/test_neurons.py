from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest

from src.stores.neurons import join, read_neurons, write_neurons


def make_table():
    return pd.DataFrame(
        {"neuron_id": [0, 1, 2], "mean": [0.1, 1 / 3, 0.0], "top_class": ["NA", "01", ""], "max": [1, 2, np.nan]}
    )


def test_a_table_comes_back_with_class_names_as_they_are(tmp_path):
    write_neurons(tmp_path / "analysis", make_table())
    found = read_neurons(tmp_path / "analysis")
    assert found["mean"].tolist() == make_table()["mean"].tolist()
    assert found["top_class"].tolist()[:2] == ["NA", "01"]
    assert pd.isna(found["top_class"][2])
    assert np.isnan(found["max"][2])


def test_parquet_holds_the_same(tmp_path):
    pytest.importorskip("pyarrow")
    write_neurons(tmp_path, make_table())
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "neurons.parquet"), make_table())


@pytest.mark.skipif(find_spec("pyarrow") is not None, reason="pyarrow is installed")
def test_without_pyarrow_it_is_said_that_there_is_no_parquet(tmp_path, caplog):
    with caplog.at_level("INFO"):
        write_neurons(tmp_path, make_table())
    assert "pyarrow" in caplog.text
    assert not (tmp_path / "neurons.parquet").exists()


def test_columns_are_joined_by_neuron():
    found = join(make_table(), pd.DataFrame({"neuron_id": [2, 0], "rank": [1, 2], "max": [5, 6]}))
    assert found["neuron_id"].tolist() == [0, 1, 2]
    assert found["rank"].fillna(-1).tolist() == [2, -1, 1]
    assert found["max"].fillna(-1).tolist() == [6, -1, 5]  # in place of the older column
    assert list(found.columns) == ["neuron_id", "mean", "top_class", "rank", "max"]


def test_wrong_tables_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="task=summarize_latents"):
        read_neurons(tmp_path)
    with pytest.raises(ValueError, match="another SAE"):
        join(make_table(), pd.DataFrame({"neuron_id": [3], "rank": [1]}))
    with pytest.raises(ValueError, match="neuron 1 more than once"):
        join(make_table(), pd.DataFrame({"neuron_id": [1, 1], "rank": [1, 2]}))
    with pytest.raises(ValueError, match="a column neuron_id"):
        write_neurons(tmp_path, pd.DataFrame({"id": [1]}))
