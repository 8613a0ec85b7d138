import json
from pathlib import Path

import pandas as pd
import pytest
from omegaconf import OmegaConf

from src import config
from src.runs.rundir import RunDir
from src.split_files import read_split
from src.tasks import splits


@pytest.fixture
def cfg(tmp_path):
    rows = [(f"{i:03d}", f"{i:03d}", ("normal", "tumor")[i % 2]) for i in range(20)]
    pd.DataFrame(rows, columns=["case_id", "item_id", "label"]).to_csv(tmp_path / "dataset.csv", index=False)
    dataset = {
        "metadata_csv": str(tmp_path / "dataset.csv"),
        "class_names": None,
        "splits_dir": str(tmp_path / "splits"),
    }
    options = {"scheme": "auto", "n_folds": 4, "seed": 0, "val_share": 0.2, "test_share": 0.2}
    options |= {"shuffle": "scikit_learn", "stratify_by": []}
    return OmegaConf.create({"overwrite": False, "splits": options, "dataset": dataset})


def files(cfg):
    return {path.name: path.read_bytes() for path in Path(cfg.dataset.splits_dir).iterdir()}


def test_writes_folds_table_and_page(cfg, tmp_path):
    rundir = RunDir(tmp_path / "run")
    assert splits.run(cfg, rundir) == {"n_folds": 4, "n_items": 20, "n_cases": 20}
    assert len(read_split(cfg.dataset.splits_dir, 3).test) == 5
    table = pd.read_csv(rundir.table("splits"))
    assert list(table.columns) == ["fold", "part", "n_items", "n_cases", "normal", "tumor"]
    assert table.groupby("fold")["n_items"].sum().tolist() == [20] * 4
    assert rundir.page_path.is_file()
    assert [(one.what, one.path) for one in rundir.recorded()] == [("all cases", str(cfg.dataset.metadata_csv))]


def test_made_again_alike(cfg, tmp_path):
    splits.run(cfg, RunDir(tmp_path / "run"))
    before = files(cfg)
    (Path(cfg.dataset.splits_dir) / "splits_2.csv").unlink()  # as after a kill
    assert splits.missing_inputs(cfg) == []
    splits.run(cfg, RunDir(tmp_path / "run"))
    assert files(cfg) == before


def test_other_folds_of_this_task_need_overwrite(cfg, tmp_path):
    splits.run(cfg, RunDir(tmp_path / "run"))
    before = files(cfg)
    cfg.splits.n_folds = 3
    with pytest.raises(ValueError, match=r"\(n_folds: 4 there, 3 here\).*overwrite=true"):
        splits.run(cfg, RunDir(tmp_path / "other"))
    assert files(cfg) == before
    cfg.overwrite = True
    splits.run(cfg, RunDir(tmp_path / "other"))
    assert sum(name.endswith("_bool.csv") for name in files(cfg)) == 3


@pytest.mark.parametrize("overwrite", [False, True])
def test_folds_of_the_dataset_are_never_touched(cfg, tmp_path, overwrite):
    cfg.overwrite = overwrite
    assert splits.missing_inputs(cfg) == []
    Path(cfg.dataset.splits_dir).mkdir()
    (Path(cfg.dataset.splits_dir) / "splits_0.csv").write_text("train,val,test\n000,001,002\n")
    before = files(cfg)
    (reason,) = splits.missing_inputs(cfg)
    assert "the dataset has splits at" in reason
    with pytest.raises(ValueError, match=r"Expected no splits in .*did not make"):
        splits.run(cfg, RunDir(tmp_path / "run"))
    assert files(cfg) == before


def test_a_column_split_of_the_csv_fixes_the_test_set_unless_another_scheme_is_chosen(cfg, tmp_path):
    path = Path(cfg.dataset.metadata_csv)
    table = pd.read_csv(path, dtype=str)
    table.assign(split=["test" if i < 6 else "train" for i in range(len(table))]).to_csv(path, index=False)
    splits.run(cfg, RunDir(tmp_path / "run"))
    assert {read_split(cfg.dataset.splits_dir, k).test for k in range(4)} == {tuple(table["item_id"][:6])}
    cfg.splits.scheme, cfg.overwrite = "kfold", True
    splits.run(cfg, RunDir(tmp_path / "other"))
    assert len({read_split(cfg.dataset.splits_dir, k).test for k in range(4)}) == 4
    cfg.splits.scheme = "monte_carlo"
    splits.run(cfg, RunDir(tmp_path / "draws"))
    assert "test sets overlap" in (tmp_path / "draws" / "page.json").read_text()


def test_folds_of_an_earlier_version_are_still_its_own(cfg, tmp_path):
    splits.run(cfg, RunDir(tmp_path / "run"))
    path = Path(cfg.dataset.splits_dir) / "made_by_loupe.json"
    made = json.loads(path.read_text())
    path.write_text(json.dumps({key: made[key] for key in ("n_folds", "seed", "val_share", "cases")}))
    splits.run(cfg, RunDir(tmp_path / "again"))


def test_only_lines_of_given_values_are_taken(cfg, tmp_path):
    path = Path(cfg.dataset.metadata_csv)
    pd.read_csv(path, dtype=str).assign(center=["a", "a", "b", "b"] * 5).to_csv(path, index=False)
    cfg.dataset.where = {"center": "b"}
    assert splits.run(cfg, RunDir(tmp_path / "run"))["n_items"] == 10
    cfg.dataset.where = {"center": "c"}
    with pytest.raises(ValueError, match=r"values of dataset\.where, .*got none"):
        splits.run(cfg, RunDir(tmp_path / "other"))
    cfg.dataset.where = {"scanner": "b"}
    with pytest.raises(ValueError, match=r"columns of dataset\.where .* without \['scanner'\]"):
        splits.run(cfg, RunDir(tmp_path / "other"))


@pytest.mark.realdata
def test_the_study_makes_its_published_folds_byte_for_byte(data_dir, tmp_path):
    published = data_dir / "tables" / "sae1n"
    config.register_resolvers()
    typed = ["exp=camelyon16_conch", "task=splits", f"dataset.metadata_csv={published / 'camelyon16_metadata.csv'}"]
    resolved = config.resolve(config.compose([*typed, f"dataset.splits_dir={tmp_path / 'splits'}"]))
    assert splits.run(resolved, RunDir(tmp_path / "run"))["n_folds"] == 5
    paths = sorted(published.glob("splits_*.csv"))
    assert len(paths) >= 3
    for path in paths:
        assert (tmp_path / "splits" / path.name).read_bytes() == path.read_bytes()
