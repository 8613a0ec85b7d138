"""What was fitted on held-out cases is refused, also by a detour over other runs, exports and imports."""

import shutil

import pytest

from src import config
from src.runs.execution import execute, open_rundir
from src.runs.lineage import StaleRunError
from tests.synthetic import make_feature_folder

config.register_resolvers()
SMALL = ("sae.k=4", "train.epochs=1", "train.batch_size=512", "mil.max_epochs=1", "mil.methods=[neuron]", "trainer=cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two folds with an SAE each."""
    folder = tmp_path_factory.mktemp("trained")
    make_feature_folder(folder / "features", n_patches=10)
    start(folder, "task=splits")
    for fold in (0, 1):
        start(folder, "task=train_sae", f"fold={fold}")
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "copy")


def compose(folder, *overrides):
    typed = ["exp=features", "name=small", f"dataset.dir={folder / 'features'}", "dataset.positive_class=tumor"]
    typed += [
        f"dataset.splits_dir={folder / 'splits'}",
        f"paths.data={folder / 'data'}",
        f"paths.runs={folder / 'runs'}",
    ]
    return [*typed, *SMALL, *overrides]


def start(folder, *overrides):
    typed = compose(folder, *overrides)
    return execute(config.compose(typed), typed)


def rundir_of(folder, *overrides):
    typed = compose(folder, *overrides)
    return open_rundir(config.resolve(config.compose(typed)), typed)


def test_sae_of_another_fold_is_refused(folder):
    other = rundir_of(folder, "task=train_sae", "fold=1").path
    with pytest.raises(ValueError, match="in both"):
        start(folder, "task=encode", f"sae_run='{other}'")


@pytest.mark.slow
def test_an_export_that_was_converted_still_says_what_it_was_fitted_on(folder):
    export = rundir_of(folder, "task=train_sae", "fold=1").export_dir
    converted = rundir_of(folder, "task=convert", f"convert.path='{export}'")
    start(folder, "task=convert", f"convert.path='{export}'")
    assert not converted.fitted_on_unknown_path.exists()
    with pytest.raises(ValueError, match="in both"):
        start(folder, "task=encode", f"sae_run='{converted.path}'")
    start(folder, "task=encode", f"sae_run='{converted.path}'", "fold=1")
    (export / "fitted_on.csv").unlink()
    with pytest.raises(ValueError, match=r"fitted_on\.csv.* no such file: copy the whole export"):
        start(folder, "task=convert", f"convert.path='{export}'", "overwrite=true")


@pytest.mark.slow
def test_latents_of_an_older_split_are_not_ranked_or_classified(folder):
    """Encoded, then the split replaced by another fold's and the SAE trained again: the latents are those of before."""
    start(folder, "task=encode")
    start(folder, "task=select_neurons")
    shutil.copy(folder / "splits" / "splits_1.csv", folder / "splits" / "splits_0.csv")
    start(folder, "task=train_sae", "overwrite=true")
    for overrides in (("task=select_neurons", "overwrite=true"), ("task=train_mil",), ("task=encode",)):
        with pytest.raises(StaleRunError, match="encode"):
            start(folder, *overrides)


@pytest.mark.slow
def test_what_is_made_with_an_sae_says_what_the_sae_was_fitted_on(folder):
    start(folder, "task=encode")
    start(folder, "task=select_neurons")
    trained, encoded, ranked = (
        {slide.item_id for slide in rundir_of(folder, f"task={task}").read_fitted_on()}
        for task in ("train_sae", "encode", "select_neurons")
    )
    assert trained == encoded == ranked != set()


@pytest.mark.parametrize("content", ["", "item_id,case_id,digest,n_patches\n", "item_id\n003\n"])
def test_list_of_fitted_slides_without_slides_passes_no_check(folder, content):
    trained = rundir_of(folder, "task=train_sae")
    trained.fitted_on_path.write_text(content)
    with pytest.raises(ValueError, match=r"fitted_on\.csv"):
        start(folder, "task=encode")
    with pytest.raises(ValueError, match=r"fitted_on\.csv.*leakage cannot be ruled out"):
        trained.read_fitted_on()


def test_sae_run_that_is_no_finished_run_is_told(folder):
    with pytest.raises(ValueError, match="sae_run: expected"):
        start(folder, "task=encode", f"sae_run={folder / 'features'}")
