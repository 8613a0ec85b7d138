"""Cases by neurons in one file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from src.files import write_atomically


@dataclass(frozen=True)
class CaseMatrix:
    """How strongly each neuron fires in each case.

    Attributes:
        case_ids: the cases, in the order of the rows.
        labels: of the cases; None where a case has none, or its items disagree.
        n_items: [n_cases] int64, the items of each case.
        values: [n_cases, n_latents] sparse.
    """

    case_ids: tuple[str, ...]
    labels: tuple[str | None, ...]
    n_items: np.ndarray
    values: csr_matrix


def write_case_matrix(path: str | Path, matrix: CaseMatrix) -> None:
    """Writes a matrix as one npz: `case_ids`, `labels` ("" for none), `n_items`, and `values` in compressed rows."""
    with write_atomically(path) as temporary, open(temporary, "wb") as file:
        np.savez(
            file,
            case_ids=np.array(matrix.case_ids, dtype=str),
            labels=np.array([label or "" for label in matrix.labels], dtype=str),
            n_items=matrix.n_items,
            data=matrix.values.data,
            indices=matrix.values.indices,
            indptr=matrix.values.indptr,
            shape=np.array(matrix.values.shape, np.int64),
        )


def read_case_matrix(path: str | Path) -> CaseMatrix:
    """Reads what `write_case_matrix` wrote.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected a matrix of cases at {path}, found none: run task=summarize_latents with "
            "latent_summary.cases=always."
        )
    try:
        with open(path, "rb") as file, np.load(file) as arrays:
            parts = (arrays["data"], arrays["indices"], arrays["indptr"])
            values = csr_matrix(parts, shape=tuple(arrays["shape"].tolist()))
            labels = tuple(label or None for label in arrays["labels"].tolist())
            return CaseMatrix(tuple(arrays["case_ids"].tolist()), labels, arrays["n_items"], values)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise ValueError(f"Expected a matrix of cases in {path}, got {error}. Run its task again.") from error


def write_h5ad(path: str | Path, matrix: CaseMatrix, neurons: pd.DataFrame | None = None) -> None:
    """Writes a matrix as AnnData: cases are `obs` (with `label` and `n_items`), neurons are `var`.

    Args:
        path: the `.h5ad`.
        matrix: the cases.
        neurons: the table of neurons, which `var` takes over.

    Raises:
        ModuleNotFoundError: when anndata is not installed.
    """
    try:
        from anndata import AnnData  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Expected the package anndata to write a .h5ad, found none: pip install anndata, or give "
            "latent_summary.h5ad=false."
        ) from error
    columns: Mapping[str, list] = {
        "label": [label or "" for label in matrix.labels],
        "n_items": matrix.n_items.tolist(),
    }
    obs = pd.DataFrame(columns, index=pd.Index(matrix.case_ids, dtype=object))
    _, n_latents = matrix.values.get_shape()
    var = pd.DataFrame(index=pd.Index([str(neuron_id) for neuron_id in range(n_latents)], dtype=object))
    if neurons is not None:
        var = neurons.drop(columns="neuron_id").set_index(var.index)
    with write_atomically(path) as temporary:
        AnnData(matrix.values, obs=obs, var=var).write_h5ad(temporary)
