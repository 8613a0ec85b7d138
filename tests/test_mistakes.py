"""No mistake of a user prints a stack: each is refused with a few lines that name the key, the file or the choice."""

import subprocess
import sys

import pytest
from hydra.errors import HydraException

from src import config
from src.runs.execution import execute
from src.runs.lock import LiveRunError
from tests.synthetic import make_feature_folder

config.register_resolvers()
# What the command says without a stack: src/run.py its own, Hydra those of composing.
SAID = (ValueError, OSError, LiveRunError, HydraException)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """Two folders of features of other widths, and a trained SAE of the first."""
    path = tmp_path_factory.mktemp("mistakes")
    make_feature_folder(path / "features", n_slides=24, n_patches=20)
    make_feature_folder(path / "wide", n_slides=24, n_patches=20, d_in=24)
    (path / "empty").mkdir()
    (path / "folder.csv").mkdir()
    (path / "file").write_text("hello")
    for task in ("splits", "train_sae"):
        start(path, f"task={task}")
    (sae_run,) = (path / "runs/small").glob("*/fold_0/train_sae")
    sae_run.rename(path / "sae_run")
    unfinished = path / "unfinished"
    unfinished.mkdir()
    (unfinished / "manifest.json").write_text('{"status": "running"}')
    return path


def typed(path, *overrides):
    return [
        "exp=features",
        f"dataset.dir={path / 'features'}",
        f"dataset.splits_dir={path / 'splits'}",
        "dataset.positive_class=tumor",
        "name=small",
        f"paths.data={path / 'data'}",
        f"paths.runs={path / 'runs'}",
        "splits.n_folds=3",
        "sae.k=4",
        "train.batch_size=128",
        "train.epochs=1",
        "trainer=cpu",
        *(override.replace("=@", f"={path}/") for override in overrides),
    ]


def start(path, *overrides):
    overrides = typed(path, *overrides)
    execute(config.compose(overrides), overrides)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        # Misspelt
        ("sae=batchtopk", "Could not find 'sae/batchtopk'"),
        ("saee=topk", "Could not override 'saee'"),
        ("task=trainsae", "Could not find 'task/trainsae'"),
        ("exp=quickstrat", "Could not find 'exp/quickstrat'"),
        ("logger=tensorbord", "Could not find 'logger/tensorbord'"),
        ("trainer=gpu", "Could not find 'trainer/gpu'"),
        ("mil/pool@mil.pools.attention=gatted", "Could not find 'mil/pool/gatted'"),
        ("sae.kk=3", "Could not override 'sae.kk'"),
        ("trainer.max_steps=3", "Could not override 'trainer.max_steps'"),
        ("sae.k=a=b", "mismatched input '='"),
        ("+sae.kk=3", "sae.kk: expected an argument of src.models.saes.batch_topk.BatchTopK"),
        ("sae.n_latents=${sae.nope}", "sae.n_latents: expected references that lead somewhere"),
        # Values
        ("sae.k=0 train.epochs=-1", "(?s)sae.k: .* got 0.*train.epochs: .* got -1"),
        ("sae.n_latents=2", "sae.k: expected at most sae.n_latents=2, got 4"),
        ("sae.expansion=0.1", "sae.k within 1 and n_latents=2, got 4"),
        ("sae.expansion=0.001", "n_latents=0: give sae.n_latents, or a larger sae.expansion"),
        ("~encode", "encode: expected a group of values"),
        ("dataset.class_names=normal", "dataset.class_names: expected a list or null"),
        ("sae=matryoshka_batch_topk sae.group_fractions=[0.5,0.1]", "Expected sae.group_fractions that sum to 1"),
        ("sae=archetypal sae.b_dec_init=mean", "Expected sae.decoder_constraint=none and sae.b_dec_init=zero"),
        pytest.param("sae=archetypal sae.n_points=5000", "set sae.n_points lower", marks=pytest.mark.slow),
        ("sae._target_=src.models.saes.nope.Nope", "sae: expected _target_ to name a class or function"),
        ("train.batch_unit=images", "equally many rows for train.batch_unit=images"),
        ("train.batch_unit=images train.n_tokens=7", "Expected a multiple of train.n_tokens=7 rows"),
        ("train.compile_backend=nonsense", "train.compile_backend: expected null or one of"),
        ("fold=17", "Expected the split of fold 17 .* at splits_17.csv"),
        # Devices
        ("trainer.devices=0", r"trainer: .*devices=0"),
        ("trainer.devices=two", "trainer: .*`devices`"),
        ("trainer.accelerator=quantum", "trainer: .*accelerator='quantum'"),
        ("trainer.precision=17-mixed", "trainer.precision: expected 32-true or bf16-mixed, got '17-mixed'"),
        ("trainer.precision=bf16-true", "trainer.precision: expected 32-true or bf16-mixed, got 'bf16-true'"),
        ("+trainer.num_nodes=2", "trainer.num_nodes: expected 1"),
        # Files and folders
        ("paths.runs=@file", "paths.runs: expected a folder"),
        ("paths.cache=@file/cache", "paths.cache: expected a folder"),
        ("dataset.metadata_csv=@folder.csv", "dataset.metadata_csv: found a folder at"),
        ("dataset.features_dir=@file", "dataset.features_dir: found a file at"),
        ("dataset.features_dir=@empty name=other", "got an empty folder"),
        ("dataset.dir=null", "give dataset.dir=<folder of the data set>"),
        ("dataset.splits_dir=@empty", "make splits with task=splits"),
        ("task=tile", "needs dataset.slides_dir: found no path"),
        ("task=tile dataset.slides_dir=@empty", "writes dataset.patches_dir: found no path; give dataset.patches_dir="),
        ("task=tile dataset.slides_dir=@empty dataset.patches_dir=@new", "Expected slides .*found none"),
        ("task=localize", "needs dataset.annotations_dir: found no path"),
        ("task=encode name=other", "Expected a finished train_sae run"),
        ("task=convert", "convert.path="),
        ("task=convert convert.path=@nothing", "Expected a checkpoint's file or folder"),
        ("task=convert convert.path=@file", "Expected .* to hold tensors"),
        ("task=convert convert.path=@empty", "Expected weights"),
        # An SAE of another run
        ("task=encode sae_run=@nothing", "sae_run: .* nothing is there"),
        ("task=encode sae_run=@file", "sae_run: .* a file"),
        ("task=encode sae_run=@empty", "sae_run: .* without manifest.json"),
        ("task=encode sae_run=@unfinished", "sae_run: .* its status is running"),
        ("task=encode sae_run=@sae_run/export", "sae_run: .* give sae_run=.*sae_run$"),
        ("task=encode sae_run=@sae_run dataset.dir=@wide name=wide", "takes, got 24 .* or give another sae_run="),
        # Sweeps
        ("task=train_sae_sweep", "got none: give e.g. sweep.grid="),
        ("task=train_sae_sweep sweep.grid=['sae.k=4,']", "sweep.grid: "),
        ("task=train_sae_sweep sweep.grid=['sae.k=4','sae.k=3']", "sweep.grid: .*several for"),
        ("task=train_sae_sweep sweep.grid=['sae.k=4,0']", "sae.k: .* got 0"),
        ("task=train_sae_sweep sweep.grid=['sae.kk=4']", "Could not override 'sae.kk'"),
    ],
)
def test_mistake_is_refused_in_words(workplace, monkeypatch, overrides, expected):
    overrides = overrides.split(" ")
    monkeypatch.setattr(config, "hydra_overrides", lambda: typed(workplace, *overrides))
    with pytest.raises(SAID, match=expected) as caught:
        start(workplace, *overrides)
    assert len(str(caught.value)) < 2000


def test_missing_gpu_is_said_before_the_data_are_read(workplace, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("src.tasks.train_sae.run", lambda *_: pytest.fail("the task began"))
    with pytest.raises(ValueError, match=r"trainer: .*gpu"):
        start(workplace, "trainer.accelerator=gpu")


def test_missing_wandb_account_is_said_before_the_data_are_read(workplace, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for key in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "NETRC"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setattr("src.tasks.train_sae.run", lambda *_: pytest.fail("the task began"))
    with pytest.raises(ValueError, match=r"logger: .*`wandb login`.*logger.wandb.offline=true"):
        start(workplace, "logger=wandb")


@pytest.mark.parametrize("choice", [path.stem for path in (config.CONF_DIR / "sae").glob("*.yaml")])
def test_every_sae_is_built_without_data_when_it_is_checked(workplace, choice):
    overrides = [override for override in typed(workplace, f"sae={choice}") if not override.startswith("sae.k")]
    config.validate(config.compose(overrides))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["task=splits", "paths.runs=@file"], "paths.runs: expected a folder"),
        (["task=splits", "name=2024"], "name: expected text, got 2024"),
        (["task=nope"], "Could not find 'task/nope'"),
        (["task=splits", "optimize=nope"], "Expected optimize to be a result of the task (n_folds"),
        (["-m", "task=splits", "seed=0,x"], "seed: expected a whole number"),
    ],
)
def test_command_prints_no_stack(workplace, overrides, expected):
    flags = [override for override in overrides if override == "-m"]
    rest = typed(workplace, *[override for override in overrides if override != "-m"])
    done = subprocess.run([sys.executable, "-m", "src.run", *flags, *rest], capture_output=True, text=True, timeout=120)
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert expected in said
    assert "Traceback" not in said
