"""Everything under conf/ composes and binds; read from disk, so that a new YAML is tested without editing a test."""

import inspect

import hydra
import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException
from hydra.utils import get_object
from omegaconf import OmegaConf, open_dict

from src import config
from src.folder_names import folder_name
from src.launching import launcher

config.register_resolvers()


def names(group: str) -> list[str]:
    found = sorted(path.stem for path in (config.CONF_DIR / group).glob("*.yaml"))
    assert found, group
    return found


EXPS = names("exp")
TASKS = names("task")


def errors_of(overrides: list[str]) -> str:
    return errors_of_config(config.compose(overrides))


def errors_of_config(cfg) -> str:
    try:
        config.validate(cfg)
        config.check_start(cfg)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    "path", [path for group in ("exp", "task") for path in (config.CONF_DIR / group).glob("*.yaml")]
)
def test_presets_and_tasks_are_global(path):
    assert path.read_text().startswith("# @package _global_")


@pytest.mark.slow
@pytest.mark.parametrize("exp", EXPS)
def test_every_preset_can_start_every_task(exp):
    # One composition a preset: tasks set no key but their own.
    cfg = config.resolve(config.compose([f"exp={exp}"]))
    for task in TASKS:
        require_data_alone(config.with_task(cfg, task), task)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_composes(task):
    require_data_alone(config.compose(["exp=quickstart", f"task={task}"]), task)


def require_data_alone(cfg, task):
    """Nothing is wrong with a configuration but data that is not on this machine."""
    lines = errors_of_config(cfg).splitlines()[1:]
    expected = f"  task={task} needs dataset.", f"  task={task} writes dataset."
    assert all(line.startswith(expected) for line in lines), lines


@pytest.mark.slow
@pytest.mark.parametrize("group", ["sae", "backbone", "mil", "train", "trainer", "logger", "dataset", "tile"])
def test_every_choice_of_a_group_binds(group):
    for name in names(group):
        complaint = errors_of([f"{group}={name}", "task=tile"])
        assert "expected an argument" not in complaint
        assert "expected _target_" not in complaint


def test_groups_of_a_task_exist():
    known = set(OmegaConf.to_container(config.compose([]), resolve=False))
    for task in TASKS:
        assert set(config.tasks()[task].groups) <= known


def test_missing_data_is_named_with_the_command_that_makes_it(tmp_path):
    complaint = errors_of(["exp=camelyon16_conch_0", f"paths.data={tmp_path}"])
    assert f"needs dataset.features_dir: found nothing at {tmp_path}/camelyon16/features_conch" in complaint
    assert "task=embed" in complaint
    assert "needs dataset.splits_dir" in complaint


def test_all_errors_are_shown_at_once():
    cfg = config.compose(["exp=camelyon16_conch_0", "sae.expansion=???", "fold=-1"])
    with pytest.raises(ValueError, match=r"(?s)sae\.expansion: expected a value.*fold: expected a whole"):
        config.validate(cfg)


def test_misspelt_override_is_refused():
    with pytest.raises(ConfigCompositionException, match=r"sae\.kk"):
        config.compose(["sae.kk=3"])


def test_folders_of_one_name_give_different_run_names(tmp_path):
    (first := tmp_path / "a" / "features").mkdir(parents=True)
    (second := tmp_path / "b" / "features").mkdir(parents=True)
    assert folder_name(str(first)).startswith("features_")
    assert folder_name(str(first)) != folder_name(str(second))


@pytest.mark.parametrize("cluster", names("cluster"))
def test_every_cluster_is_launched_by_ours(cluster):
    launcher.register()
    with hydra.initialize_config_dir(str(config.CONF_DIR), version_base="1.3"):
        cfg = hydra.compose("config", overrides=[f"cluster={cluster}"], return_hydra_config=True)
    assert (cfg.cluster.kind, cfg.cluster.steps) == (cluster, None)
    assert get_object(cfg.hydra.launcher._target_) is launcher.Launcher


@pytest.mark.parametrize(
    ("overrides", "mode", "is_refused"),
    [
        (["trainer.devices=2"], "MULTIRUN", True),
        (["trainer.devices=[0,1]", "task=pipeline"], "MULTIRUN", True),
        (["trainer.devices=1"], "MULTIRUN", False),
        (["trainer.devices=2"], "RUN", False),
        (["trainer.devices=2", "task=report"], "MULTIRUN", False),
        (["trainer.devices=2", "cluster=slurm"], "MULTIRUN", False),
        (["trainer.devices=2", "cluster=workers"], "MULTIRUN", False),
    ],
)
def test_a_sweep_in_one_process_starts_no_processes(overrides, mode, is_refused, monkeypatch):
    with hydra.initialize_config_dir(str(config.CONF_DIR), version_base="1.3"):
        started = hydra.compose("config", [*overrides], return_hydra_config=True)
    with open_dict(started):
        started.hydra.mode = mode
    monkeypatch.setattr(HydraConfig.instance(), "cfg", started)
    complaint = errors_of(["exp=quickstart", "trainer=cpu", *overrides])
    assert ("without -m, or give cluster=workers or cluster=slurm" in complaint) == is_refused, complaint


def test_labels_that_yaml_takes_for_numbers_are_texts():
    typed = ["task=convert", "dataset=features", "dataset.positive_class=1", "dataset.class_names=[0,1]"]
    dataset = config.resolve(config.compose(typed)).dataset
    assert (dataset.positive_class, list(dataset.class_names)) == ("1", ["0", "1"])
    with pytest.raises(ValueError, match=r"text in dataset\.positive_class, got True: put the label in quotes"):
        config.resolve(config.compose(["task=convert", "dataset=features", "dataset.positive_class=true"]))


# Where the YAML of a family asks for something else than its class has by default.
DEVIATIONS = {
    "topk": {"aux_coefficient", "threshold_statistic"},
    "archetypal": {"aux_coefficient", "b_dec_init", "decoder_constraint"},
    "batch_topk": {"aux_coefficient"},
    "matryoshka_batch_topk": {"aux_coefficient"},
}


@pytest.mark.parametrize("family", [*DEVIATIONS, "jumprelu", "relu_l1", "gated", "p_anneal"])
def test_defaults_of_sae_options_are_those_of_the_class(family):
    node = config.to_container(config.compose([f"sae={family}"]))["sae"]
    stated = {}
    for base in get_object(node["_target_"]).__mro__:
        for parameter in inspect.signature(base.__init__).parameters.values():
            if parameter.default is not parameter.empty:
                value = parameter.default
                stated.setdefault(parameter.name, list(value) if isinstance(value, tuple) else value)
    options = {key: value for key, value in node.items() if key not in ("_target_", "name")}
    assert set(options) <= set(stated)
    assert {key for key, value in options.items() if value != stated[key]} == DEVIATIONS.get(family, set())


def test_lists_among_the_places_of_data_are_taken_over_whole():
    edges = ["left", "top", "right", "bottom"]
    typed = ["exp=vindr_mammoclip", "dataset.dir=x", f"dataset.listing.edges=[{','.join(edges)}]"]
    values = config.to_container(config.compose(typed))
    base, _ = config.base_values(values, lambda key: key.startswith("dataset.listing"))
    assert base["dataset"]["listing"]["edges"] == edges


@pytest.mark.slow
@pytest.mark.parametrize("group", ["sae", "train", "backbone", "tile"])
def test_every_choice_that_shapes_results_states_its_name(group):
    assert [config.compose([f"{group}={name}"])[group].name for name in names(group)] == names(group)
