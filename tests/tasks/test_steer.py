"""steer on a small folder of slides and on images through the rest of a ViT: by the runner."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from src import config
from src.analysis.class_statistics import rank_neurons_for_classes, read_class_statistics
from src.data.fold import open_fold
from src.models.mil.classifier import BagClassifier
from src.models.probes import Probe
from src.ops.steering import edit_dense, remove
from src.report.page import read_page
from src.runs.execution import execute, open_rundir
from src.stores.modules import load_module
from src.stores.neurons import read_neurons
from src.stores.sae import load_sae
from src.tasks.steer import missing_inputs
from tests.synthetic import make_feature_folder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),  # Lightning 2.6 under torch 2.15
]
config.register_resolvers()


def make_run(path, *always, tasks):
    paths = [f"paths.{name}={path / name}" for name in ("data", "runs", "cache")]
    always = [*always, *paths, "name=small", "trainer=cpu"]

    def run(task, *overrides):
        typed = [*always, *overrides, f"task={task}"]
        composed = config.compose(typed)
        return execute(composed, typed), open_rundir(config.resolve(composed), typed), config.resolve(composed)

    for task in tasks:
        run(task)
    return run


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    path = tmp_path_factory.mktemp("steer")
    make_feature_folder(path / "features", n_slides=80)
    return make_run(
        path,
        *("exp=features", f"dataset.dir={path / 'features'}", "dataset.positive_class=tumor", "splits.n_folds=2"),
        *("splits.val_share=0.25", "sae.k=4", "train.batch_size=256", "train.epochs=20"),
        *("probe.inputs=[activations,latents]", "probe.neuron_probes=false", "probe.pool=max"),
        *("mil.methods=[attention_latents]", "mil.max_epochs=10", "mil.min_epochs=2", "mil.lr=1e-3"),
        *("steer.head=probe", "steer.n_controls=8", "steer.doses.set=[2]", "steer.sizes=[1,4,16,all]"),
        tasks=("splits", "train_sae", "encode", "summarize_latents", "train_probe", "train_mil"),
    )


def read(rundir, name="metrics"):
    return pd.read_csv(rundir.table(name), keep_default_na=False, na_values=[""]).fillna({"target": ""})


def test_numbers_are_those_of_dense_arithmetic(slides):
    results, rundir, cfg = slides("steer", "steer.k_chosen=4", "steer.replace=mean")
    fold, sae = open_fold(cfg), load_sae(rundir.upstream("train_sae").export_dir)
    summarized = rundir.upstream("summarize_latents").path / "analysis"
    statistics = read_class_statistics(summarized / "class_statistics.npz")
    best = rank_neurons_for_classes(statistics)[statistics.classes.index("tumor"), :4].tolist()
    means = torch.from_numpy(read_neurons(summarized)["mean"].to_numpy(np.float32))
    probe = load_module(rundir.upstream("train_probe").export_dir / "activations", Probe)[0]
    predicted = {}
    for item_id in fold.split.test:
        rows = torch.from_numpy(np.array(fold.store.rows(item_id)))
        edited = edit_dense(sae.encode(rows).to_dense(), remove(best, sae.n_latents, means))
        decoded = (edited @ sae.W_dec + sae.b_dec) * sae.input_scale + sae.input_mean
        with torch.no_grad():
            predicted[item_id] = int(probe.logits_of_rows(decoded[None])[0].argmax())
    is_tumor = {one: fold.items[one].label == "tumor" for one in predicted}
    recall = np.mean([predicted[one] == probe.classes.index("tumor") for one in predicted if is_tumor[one]])
    table = read(rundir)
    found = table.query("action == 'remove' and target == 'tumor' and k == 4 and draw == -1")
    assert found[(found["class"] == "tumor") & (found.metric == "recall")]["value"].item() == pytest.approx(recall)
    share = np.mean([predicted[one] == probe.classes.index("tumor") for one in predicted if not is_tumor[one]])
    of_normal = found[(found["class"] == "normal") & (found.metric == "target_share")]
    assert of_normal["value"].item() == pytest.approx(share)
    assert results["k_chosen"] == 4
    assert results["n_items"] == len(fold.split.test)


def test_steering_the_planted_neurons_moves_their_class_beyond_random_sets_and_no_other(slides):
    results, rundir, _ = slides("steer", "steer.probe=latents")
    effects = read(rundir, "effects").query("metric == 'probability'").set_index("class")
    assert effects.loc["tumor", "remove"] < effects.loc["tumor", "reconstruct"] - 0.2
    assert bool(effects.loc["tumor", "lowered"])
    own = read(rundir).query(f"target == 'tumor' and k == {results['k_chosen']} and draw == -1 and action == 'remove'")
    plain = read(rundir).query("action == 'reconstruct' and metric == 'recall'").set_index("class")["value"]
    of_normal = own[(own["class"] == "normal") & (own.metric == "recall")]["value"].item()
    assert of_normal >= plain["normal"]
    controls = read(rundir, "controls")
    assert controls.groupby(["class", "k"]).size().eq(8).all()
    neurons = read_neurons(rundir.path / "analysis")
    best = neurons[neurons.steer_class == "tumor"].sort_values("steer_rank")
    assert best["steer_effect"].iloc[0] < 0
    assert len(read_page(rundir.page_path).figures) == 4
    sizes = read(rundir, "sizes").query("target == 'own'")
    assert sizes["k"].max() == len(neurons)


def test_keeping_everything_with_the_error_is_the_model_itself_whatever_replaces(slides):
    for replace in ("mean", "zero", "resample"):
        options = ["steer.error_term=kept", f"steer.replace={replace}", "steer.k_chosen=4", "steer.n_controls=0"]
        results, rundir, _ = slides("steer", *options, "steer.published_layout=true")
        table = read(rundir)
        size = table["k"].max()
        for metric in ("recall", "probability"):
            rows = table[(table.metric == metric) & (table.draw < 0)]
            plain = rows[rows.action == "no_sae"].set_index("class")["value"]
            kept = rows[(rows.action == "keep") & (rows.k == size) & (rows.target == rows["class"])]
            assert kept.set_index("class")["value"].to_dict() == plain.to_dict()
        published = pd.read_csv(rundir.path / "analysis" / "published" / "metrics.csv")
        assert list(published) == ["normal", "tumor"]
        assert published.iloc[0].tolist() == published.iloc[-2].tolist()
        assert len(published) == 1 + 2 * 4
        assert "test/n_raised" not in results


def test_a_mil_model_over_latents_is_steered(slides):
    _, rundir, cfg = slides("steer", "steer.head=mil", "steer.k_chosen=4", "steer.n_controls=2", "steer.doses.add=[]")
    fold = open_fold(cfg)
    folder = rundir.upstream("train_mil").export_dir / "attention_latents"
    classifier, sae = load_module(folder, BagClassifier)[0], load_sae(rundir.upstream("train_sae").export_dir)
    rows = {one: torch.from_numpy(np.array(fold.store.rows(one))) for one in fold.split.test}
    with torch.no_grad():
        probability = {one: classifier(sae.encode(of_item).to_dense())[0] for one, of_item in rows.items()}
    plain = read(rundir).query("action == 'reconstruct' and metric == 'probability'").set_index("class")["value"]
    for number, name in enumerate(classifier.classes):
        values = [float(probability[one][number]) for one in rows if fold.items[one].label == name]
        assert plain[name] == pytest.approx(np.median(values), abs=1e-5)


def test_what_does_not_fit_is_refused(slides, tmp_path):
    for override, said in {
        "steer.replace=nothing": "steer.replace.*mean, zero or resample",
        "steer.error_term=half": "steer.error_term.*dropped or kept",
        "steer.control_sizes=few": "steer.control_sizes.*all or chosen",
        "steer.k_chosen=100000": "steer.k_chosen within 0:",
        "steer.sizes=[1,most]": "whole numbers from 0 or all",
        "steer.head=guess": "steer.head.*auto, probe",
        "steer.probe=neurons": r"export of .*, got 'neurons': there are \['activations', 'latents'\]",
        "steer.rule=best": "steer.rule.*contrast, count or mean_abs",
        "steer.head=tail": "backbone to compute activations with",
    }.items():
        with pytest.raises(ValueError, match=said):
            slides("steer", override, "steer.n_single=1")
    _, rundir, cfg = slides("train_probe")
    copy = tmp_path / "runs" / "train_probe"
    shutil.copytree(rundir.path, copy)
    described = copy / "export" / "activations" / "cfg.json"
    described.write_text(described.read_text().replace('"tumor"', '"lesion"'))
    with pytest.raises(ValueError, match=r"(knows the classes|changed|differ|digest)"):
        slides("steer", f"++probe_run={copy}", "steer.n_single=1")
    assert missing_inputs(cfg)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(36):
        pixels = rng.integers(0, 100, (96, 96, 3), np.uint8)
        if number % 2:
            pixels[16:80, 16:80] = [250, 20, 20]
        file = path / "images" / ("plain", "square")[number % 2] / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    return make_run(
        path,
        *("exp=images", f"dataset.dir={path / 'images'}", "dataset.name=images", "dataset.positive_class=square"),
        *("backbone=random_vit_tiny", "backbone.layer=-2", "+backbone.model_args={num_classes:2}", "sae.expansion=1"),
        *("train.epochs=3", "train.batch_size=256", "splits.n_folds=2", "splits.val_share=0.25", "steer.head=tail"),
        *("steer.tail_classes=[plain,square]", "steer.sizes=[4,all]", "steer.k_chosen=4", "steer.n_controls=2"),
        tasks=("metadata", "splits"),
    )


def test_the_rest_of_a_model_is_run_from_edited_tokens(images):
    tokens = "backbone.tokens=all"
    for task in ("embed", "train_sae", "summarize_latents"):
        images(task, tokens)
    _, rundir, cfg = images("steer", tokens, "steer.error_term=kept")
    table = read(rundir).query("metric == 'probability' and draw == -1")
    plain = table[table.action == "no_sae"].set_index("class")["value"]
    kept = table[(table.action == "keep") & (table.k == table.k.max()) & (table.target == table["class"])]
    assert kept.set_index("class")["value"].to_dict() == plain.to_dict()
    fold = open_fold(cfg)
    backbone = config.instantiate(cfg.backbone)
    squares = [one for one in fold.split.test if fold.items[one].label == "square"]
    pixels = np.stack([np.asarray(Image.open(path)) for path in sorted(paths_of(cfg, squares))])
    with torch.no_grad():
        logits = backbone.model(backbone.normalize(torch.from_numpy(pixels).permute(0, 3, 1, 2)))
    assert plain["square"] == pytest.approx(float(logits.softmax(1)[:, 1].median()), abs=1e-3)


def paths_of(cfg, item_ids):
    table = pd.read_csv(cfg.dataset.metadata_csv).set_index("image_id")
    return [f"{cfg.dataset.dir}/{table.loc[item_id, 'path']}" for item_id in item_ids]


def test_some_tokens_alone_do_not_do(images):
    for task in ("embed", "train_sae", "summarize_latents"):
        images(task, "backbone.tokens=patch")
    with pytest.raises(ValueError, match=r"Expected all tokens of layer 10 .* got patch"):
        images("steer", "backbone.tokens=patch")
