"""select_neurons, train_mil and summarize_cv on small folders, through the runner."""

import logging

import numpy as np
import pandas as pd
import pytest
import torch

from src import config
from src.activation_spec import ActivationSpec
from src.analysis.methods import read_methods
from src.data.feeding.bags import activation_bags, latent_bags
from src.data.fold import open_fold
from src.models.mil.classifier import BagClassifier
from src.runs.execution import execute, open_rundir
from src.split_files import read_split
from src.stores.latents.store import LatentStore
from src.stores.modules import load_module, spec_of
from src.stores.patch_scores import read_patch_scores
from src.tasks import select_neurons
from src.training.mil_fit import fit_mil
from tests.synthetic import make_feature_folder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),  # Lightning 2.6 under torch 2.15
]
config.register_resolvers()
MIL_METHODS = (
    "max_activations",
    "attention_activations",
    "max_latents",
    "attention_latents",
    "max_top_neurons",
    "attention_top_neurons",
)


class Workplace:
    def __init__(self, path, *overrides):
        self.path = path
        self.overrides = [
            "exp=features",
            f"dataset.dir={path / 'features'}",
            "name=small",
            f"paths.data={path / 'data'}",
            f"paths.runs={path / 'runs'}",
            f"paths.cache={path / 'cache'}",
            *("sae.k=4", "train.batch_size=256", "train.epochs=60", "mil.max_epochs=6", "mil.n_top_neurons=4"),
            "splits.n_folds=5",
            *overrides,
        ]

    def run(self, task, fold=0, *overrides):
        typed = [*self.overrides, *overrides, f"fold={fold}", f"task={task}"]
        composed = config.compose(typed)
        return execute(composed, typed), open_rundir(config.resolve(composed), typed)

    def prepare(self, *folds):
        self.run("splits")
        for fold in folds:
            for task in ("train_sae", "encode", "select_neurons"):
                self.run(task, fold)


@pytest.fixture(scope="module")
def two_classes(tmp_path_factory):
    path = tmp_path_factory.mktemp("two")
    make_feature_folder(path / "features", n_slides=60)
    workplace = Workplace(path, "dataset.positive_class=tumor")
    workplace.prepare(0, 1)
    return workplace


def rundir_config(workplace):
    return config.resolve(config.compose([*workplace.overrides, "fold=0", "task=train_mil"]))


def split_of(workplace, fold):
    (folder,) = (workplace.path / "data" / "splits").glob("*")
    return read_split(folder, fold)


def test_the_planted_direction_is_selected_on_train_slides_only(two_classes):
    results, rundir = two_classes.run("select_neurons")
    neurons = pd.read_csv(rundir.table("neurons"))
    assert list(neurons) == [
        *("rank", "neuron_id", "statistic", "p_value", "q_value", "effect_size", "effect_low", "effect_high"),
        *("auroc", "mean_positive", "mean_negative", "density", "top_share"),
    ]
    assert neurons.loc[0, "q_value"] < 0.05
    assert neurons.loc[0, "auroc"] > 0.9
    assert results["neuron_id"] == neurons.loc[0, "neuron_id"]
    assert len(pd.read_csv(rundir.table("channels"))) == 16
    assert {slide.item_id for slide in rundir.read_fitted_on()} == set(split_of(two_classes, 0).train)


def test_selections_of_two_folds_are_compared_by_their_atoms(two_classes):
    results, rundir = two_classes.run("compare_selections")
    assert results["n_runs"] == 2
    (pair,) = pd.read_csv(rundir.table("selections")).itertuples()
    assert (pair.first, pair.second) == ("fold 0", "fold 1")
    assert pair.best_cosine > 0.9  # both folds find the planted direction
    assert pair.best_rank == 1


def test_classifiers_predict_held_out_slides_and_keep_attention(two_classes):
    results, rundir = two_classes.run("train_mil")
    split = split_of(two_classes, 0)
    predictions = pd.read_csv(rundir.table("predictions"), dtype={"item_id": str, "case_id": str})
    assert list(predictions) == [*("method", "split", "item_id", "case_id", "label", "prob_normal", "prob_tumor")]
    for _, part in predictions.groupby("method"):
        assert part.loc[part["split"] == "val", "item_id"].tolist() == list(split.val)
        assert part.loc[part["split"] == "test", "item_id"].tolist() == list(split.test)
    np.testing.assert_allclose(predictions[["prob_normal", "prob_tumor"]].sum(axis=1), 1, atol=1e-6)
    assert predictions["method"].unique().tolist() == [*MIL_METHODS, "neuron"]
    assert results["test/neuron_auroc"] > 0.9
    assert results["test/attention_activations_auroc"] > 0.9
    store = LatentStore(two_classes.run("encode")[1].latents_dir())
    scores = read_patch_scores(rundir.path / "analysis" / "patch_scores" / "attention_latents.h5")
    for item_id in (*split.val, *split.test):
        attention = scores[item_id].attention_of("tumor")
        assert attention.shape == (store.items[item_id].n_rows,)
        assert attention.sum() == pytest.approx(1, abs=1e-5)


def test_every_classifier_is_kept_and_predicts_the_same_bit_for_bit(two_classes):
    _, rundir = two_classes.run("train_mil")
    fold = open_fold(rundir_config(two_classes))
    latents = LatentStore(rundir.upstream("encode").latents_dir())
    methods = read_methods(rundir.table("methods"))
    assert methods["attention_top_neurons"].label == "Attention MIL on top neurons"
    assert methods["neuron"].eats == "neuron"
    table = pd.read_csv(rundir.table("predictions"), dtype={"item_id": str}).set_index(["method", "item_id"])
    folder = rundir.path / "analysis" / "patch_scores"
    scores = {name: read_patch_scores(folder / f"{name}.h5") for name in MIL_METHODS}
    for name, method in methods.items():
        classifier, metadata = load_module(rundir.export_dir / name, BagClassifier)
        assert (classifier.classes, classifier.input_name) == (fold.classes, method.eats)
        assert (metadata["method"], spec_of(metadata)) == (name, ActivationSpec())
        if method.eats == "activations":
            read = activation_bags(fold.store)
        else:
            read = latent_bags(latents, classifier.neuron_ids)
        for item_id, row in table.loc[name].iterrows():
            with torch.no_grad():
                probabilities, attention = classifier(read(item_id))
            assert probabilities.tolist() == [row[f"prob_{label}"] for label in fold.classes]
            assert (attention is not None) == name.startswith("attention")
            if attention is not None:
                np.testing.assert_array_equal(attention[0], scores[name][item_id].attention_of("tumor"))
    fitted = rundir.export_dir / "neuron" / "fitted_on.csv"
    assert fitted.read_bytes() == rundir.fitted_on_path.read_bytes()


def test_what_each_method_says_of_each_patch_is_kept(two_classes):
    _, rundir = two_classes.run("train_mil")
    split, latents = split_of(two_classes, 0), LatentStore(rundir.upstream("encode").latents_dir())
    for name in MIL_METHODS:
        scores = read_patch_scores(rundir.path / "analysis" / "patch_scores" / f"{name}.h5")
        assert list(scores) == [*split.val, *split.test]
        for item_id, one in scores.items():
            assert one.instance_logits.shape == (latents.items[item_id].n_rows, 2)
            assert (one.attention is None) == name.startswith("max")


def test_a_stopped_run_goes_on_at_the_method_it_was_in(two_classes, monkeypatch):
    few = ("mil.methods=[max_activations,attention_activations]", "mil.max_epochs=2")
    trained = []

    def fit(cfg, rundir, module, data, n_val):
        if module.name == "attention_activations" and not trained.count(module.name):
            trained.append(module.name)
            raise KeyboardInterrupt
        trained.append(module.name)
        return fit_mil(cfg, rundir, module, data, n_val)

    monkeypatch.setattr("src.tasks.train_mil.fit_mil", fit)
    with pytest.raises(KeyboardInterrupt) as interruption:
        two_classes.run("train_mil", 0, *few)
    assert interruption.value.__notes__ == ["1 of 2 methods"]
    results, rundir = two_classes.run("train_mil", 0, *few)
    assert trained == ["max_activations", "attention_activations", "attention_activations"]
    before = pd.read_csv(rundir.table("predictions"))
    monkeypatch.undo()
    again, rundir = two_classes.run("train_mil", 0, *few, "overwrite=true")
    assert again == results
    pd.testing.assert_frame_equal(pd.read_csv(rundir.table("predictions")), before)
    assert not list(rundir.checkpoints_dir.rglob("last.ckpt"))


def test_neurons_of_a_list_class_weights_and_auroc_as_the_monitor(two_classes, caplog):
    typed = ("mil.neurons=[5,3]", "mil.class_weights=balanced", "mil.monitor=auroc", "mil.max_epochs=2")
    with caplog.at_level(logging.INFO):
        results, rundir = two_classes.run("train_mil", 0, "mil.methods=[max_neurons]", *typed)
    classifier, _ = load_module(rundir.export_dir / "max_neurons", BagClassifier)
    assert classifier.neuron_ids == (5, 3)
    assert "max_neurons: 2 epochs, best validation auroc" in caplog.text
    assert 0 <= results["test/max_neurons_auroc"] <= 1


def test_a_method_does_not_depend_on_the_others(two_classes):
    _, alone = two_classes.run("train_mil", 0, "mil.methods=[attention_latents]")
    _, together = two_classes.run("train_mil")
    tables = [pd.read_csv(rundir.table("predictions")) for rundir in (alone, together)]
    columns = ["item_id", "prob_tumor"]
    of_method = tables[1][tables[1]["method"] == "attention_latents"].reset_index(drop=True)
    pd.testing.assert_frame_equal(tables[0][columns], of_method[columns])


def test_ranking_neurons_opens_labels_split_and_latents_but_no_activations(two_classes, monkeypatch):
    _, with_channels = two_classes.run("select_neurons")

    def refuse(*_):
        raise AssertionError("the activations were opened")

    monkeypatch.setattr(select_neurons, "open_fold", refuse)
    _, rundir = two_classes.run("select_neurons", 0, "selection.channels=false")
    assert rundir.path != with_channels.path
    tables = [run.table("neurons").read_text() for run in (with_channels, rundir)]
    assert tables[0] == tables[1]
    assert rundir.read_fitted_on() == with_channels.read_fitted_on()
    assert "activations" not in rundir.inputs_path.read_text()
    assert "activations train" in with_channels.inputs_path.read_text()


def test_an_sae_of_another_fold_is_refused(two_classes):
    _, other = two_classes.run("train_sae", 1)
    with pytest.raises(ValueError, match="fitted on other cases than this fold's validation and test cases"):
        two_classes.run("encode", 0, f"sae_run='{other.path}'")


def test_an_unknown_method_is_refused(two_classes):
    with pytest.raises(ValueError, match=r"mil\.methods: expected a choice of max_activations.*got 'mean_activations'"):
        two_classes.run("train_mil", 0, "mil.methods=[mean_activations]")


def test_the_summary_tells_what_is_there_and_what_is_missing(two_classes, caplog):
    two_classes.run("train_mil", 0)
    two_classes.run("train_mil", 1)
    with caplog.at_level(logging.INFO):
        results, rundir = two_classes.run("summarize_cv")
    assert results["n_folds"] == 2
    assert "Missing, no finished train_mil run: fold_2, fold_3, fold_4." in caplog.text
    assert "Each item is tested in one fold." in caplog.text
    summary = pd.read_csv(rundir.table("summary"))
    assert list(summary) == [
        *("method", "metric", "mean", "sd", "n_folds", "fold_low", "fold_high", "n_draws", "draw_sd"),
        *("pooled", "slide_low", "slide_high", "n_items"),
    ]
    assert len(summary) == 7 * 4
    folds = pd.read_csv(rundir.table("folds"))
    expected = folds[folds["method"] == "neuron"]["auroc"].mean()
    assert results["test/neuron_auroc"] == pytest.approx(expected)
    two_classes.run("train_mil", 1, "mil.max_epochs=5")  # another variant is not gathered
    assert two_classes.run("summarize_cv")[0] == results


def test_summary_without_folds_names_the_command(tmp_path):
    make_feature_folder(tmp_path / "features", n_slides=24)
    workplace = Workplace(tmp_path, "dataset.positive_class=tumor")
    workplace.run("splits")
    with pytest.raises(FileNotFoundError, match="task=train_mil"):
        workplace.run("summarize_cv")


def test_more_classes(tmp_path):
    make_feature_folder(tmp_path / "features", n_slides=48, classes=("benign", "low", "high"))
    workplace = Workplace(tmp_path)
    workplace.prepare(0)
    neurons = pd.read_csv(workplace.run("select_neurons")[1].table("neurons"))
    assert neurons["class"].value_counts().to_dict() == {"benign": 64, "high": 64, "low": 64}
    results, rundir = workplace.run("train_mil", 0, "mil.methods=[max_activations,max_top_neurons,neuron]")
    predictions = pd.read_csv(rundir.table("predictions"))
    assert [column for column in predictions if column.startswith("prob_")] == ["prob_benign", "prob_high", "prob_low"]
    assert 0 <= results["test/neuron_balanced_accuracy"] <= 1


def test_two_classes_need_a_positive_one(tmp_path):
    make_feature_folder(tmp_path / "features", n_slides=24)
    workplace = Workplace(tmp_path)
    workplace.run("splits")
    with pytest.raises(ValueError, match=r"positive class, got none of \['normal', 'tumor'\]"):
        workplace.run("select_neurons")


def test_a_fold_without_validation_slides_and_with_one_test_class(tmp_path, caplog):
    make_feature_folder(tmp_path / "features", n_slides=24)
    (tmp_path / "mine").mkdir()
    train, test = [f"{index:03d}" for index in range(20)], ["020", "021"]  # one case, so one class
    rows = [f"{item_id},,{test[index] if index < 2 else ''}" for index, item_id in enumerate(train)]
    (tmp_path / "mine" / "splits_0.csv").write_text("\n".join(["train,val,test", *rows]) + "\n")
    workplace = Workplace(tmp_path, "dataset.positive_class=tumor", f"dataset.splits_dir={tmp_path / 'mine'}")
    with caplog.at_level(logging.INFO):
        results, rundir = workplace.run("train_mil", 0, "mil.methods=[max_activations]")
        workplace.run("summarize_cv", 0, "mil.methods=[max_activations]")
    assert "no validation slides: max_activations keeps its last weights" in caplog.text
    assert "No ROC curve of tumor" in caplog.text
    assert "undefined in fold 0: a class is missing among its 2 test items" in caplog.text
    assert np.isnan(results["test/max_activations_auroc"])
    assert results["test/max_activations_accuracy"] in (0.0, 0.5, 1.0)
    assert rundir.read_results().keys() == results.keys()


def test_train_slides_of_one_class_are_refused(tmp_path):
    make_feature_folder(tmp_path / "features", n_slides=24)
    (tmp_path / "mine").mkdir()
    table = pd.read_csv(tmp_path / "features" / "dataset.csv", dtype=str)
    normal = table.loc[table["label"] == "normal", "slide_id"].tolist()
    tumor = table.loc[table["label"] == "tumor", "slide_id"].tolist()
    columns = {"train": normal[4:], "val": normal[2:4] + tumor[:2], "test": normal[:2] + tumor[2:4]}
    split = pd.DataFrame({part: pd.Series(ids) for part, ids in columns.items()})
    split.to_csv(tmp_path / "mine" / "splits_0.csv", index=False)
    workplace = Workplace(tmp_path, "dataset.positive_class=tumor", f"dataset.splits_dir={tmp_path / 'mine'}")
    with pytest.raises(ValueError, match=r"train items of two classes or more in fold 0, got \{'normal'\}"):
        workplace.run("train_mil", 0, "mil.methods=[max_activations]")
