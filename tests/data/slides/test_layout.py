import h5py
import pytest

from src import config
from src.data.slides.layout import find_features_dir, find_patches_dir

FOREIGN, OWN = {"name": "conch"}, {"name": "uni", "_target_": "some.Backbone"}


def put(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_what_clam_left_below_the_data_set_is_found(tmp_path):
    left = tmp_path / "clam_processed"
    put(left / "features_conch_v1" / "h5_files" / "a.h5", left / "patches" / "a.h5", left / "masks" / "a.jpg")
    named = str(tmp_path / "features_conch")
    assert find_features_dir(named, str(tmp_path), FOREIGN) == str(left / "features_conch_v1")
    assert find_patches_dir(named, str(tmp_path), FOREIGN) == str(left)


def test_folder_that_is_named_comes_first(tmp_path):
    put(tmp_path / "other" / "pt_files" / "a.pt", tmp_path / "named" / "a.pt")
    assert find_features_dir(str(tmp_path / "named"), str(tmp_path), FOREIGN) == str(tmp_path / "named")


def test_backbone_that_computes_reads_no_others(tmp_path):
    put(tmp_path / "features_conch_v1" / "h5_files" / "a.h5")
    assert find_features_dir("named", str(tmp_path), OWN) == "named"


def test_what_loupe_made_under_other_values_is_not_taken(tmp_path):
    for folder, key in (("patches_64_level0/patches", "settings"), ("features_uni/h5_files", "spec")):
        (tmp_path / folder).mkdir(parents=True)
        with h5py.File(tmp_path / folder / "a.h5", "w") as file:
            file.attrs[key] = "{}"
    assert find_patches_dir("named", str(tmp_path), FOREIGN) == "named"
    assert find_features_dir("named", str(tmp_path), FOREIGN) == "named"


def test_nothing_found_leaves_the_name(tmp_path):
    put(tmp_path / ".hidden" / "h5_files" / "a.h5", tmp_path / "empty" / "h5_files" / ".half.h5")
    assert find_features_dir("named", str(tmp_path), FOREIGN) == "named"
    assert find_features_dir("named", str(tmp_path / "gone"), FOREIGN) == "named"
    assert find_features_dir("named", None, FOREIGN) == "named"


def test_several_folders_are_listed(tmp_path):
    put(tmp_path / "x" / "h5_files" / "a.h5", tmp_path / "y" / "pt_files" / "a.pt")
    with pytest.raises(ValueError, match=r"dataset\.features_dir below .*/x, .*/y\. Give dataset\.features_dir="):
        find_features_dir("named", str(tmp_path), FOREIGN)


@pytest.mark.parametrize("exp", ["camelyon16_conch_0", "panda_conch_0", "features"])
def test_the_folder_of_the_data_set_is_enough(exp, tmp_path):
    features = tmp_path / "clam_processed" / "features_conch_v1"
    put(features / "h5_files" / "a.h5")
    config.register_resolvers()
    typed = [f"exp={exp}", f"dataset.dir={tmp_path}"]
    assert config.resolve(config.compose(typed)).dataset.features_dir == str(features)
    put(tmp_path / "other" / "h5_files" / "a.h5")
    with pytest.raises(ValueError, match=r"dataset\.features_dir: .*Expected one folder .*other"):
        config.resolve(config.compose(typed))
