from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from src.stores.case_matrix import CaseMatrix, read_case_matrix, write_case_matrix, write_h5ad

MATRIX = CaseMatrix(("c0", "c1"), ("tumor", None), np.array([2, 1]), csr_matrix(np.array([[0, 1.5, 0], [2, 0, 3]])))


def test_a_matrix_comes_back(tmp_path):
    write_case_matrix(tmp_path / "cases.npz", MATRIX)
    found = read_case_matrix(tmp_path / "cases.npz")
    assert (found.case_ids, found.labels) == (MATRIX.case_ids, MATRIX.labels)
    assert found.n_items.tolist() == [2, 1]
    np.testing.assert_array_equal(found.values.toarray(), MATRIX.values.toarray())


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="cases=always"):
        read_case_matrix(tmp_path / "cases.npz")
    (tmp_path / "cases.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match="matrix of cases"):
        read_case_matrix(tmp_path / "cases.npz")


def test_anndata_has_cases_as_observations_and_neurons_as_variables(tmp_path):
    anndata = pytest.importorskip("anndata")
    neurons = pd.DataFrame({"neuron_id": [0, 1, 2], "mean": [0.1, 0.2, 0.3]})
    write_h5ad(tmp_path / "cases.h5ad", MATRIX, neurons)
    found = anndata.read_h5ad(tmp_path / "cases.h5ad")
    assert found.obs_names.tolist() == ["c0", "c1"]
    assert found.obs["label"].tolist() == ["tumor", ""]
    assert found.var["mean"].tolist() == [0.1, 0.2, 0.3]
    np.testing.assert_array_equal(found.X.toarray(), MATRIX.values.toarray())


@pytest.mark.skipif(find_spec("anndata") is not None, reason="anndata is installed")
def test_without_anndata_the_package_is_named(tmp_path):
    with pytest.raises(ModuleNotFoundError, match="pip install anndata"):
        write_h5ad(tmp_path / "cases.h5ad", MATRIX)
