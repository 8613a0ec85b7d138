"""W&B accounts are found where wandb looks for them."""

import pytest

from src.checks.wandb_account import has_wandb_account


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for key in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(key, raising=False)
    return tmp_path


def test_without_any_there_is_none(home):
    assert not has_wandb_account()


@pytest.mark.parametrize("key", ["WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"])
def test_the_environment_has_one(home, monkeypatch, key):
    monkeypatch.setenv(key, "something")
    assert has_wandb_account()


def test_the_netrc_file_has_one_of_the_server_that_is_asked(home, monkeypatch):
    (home / ".netrc").write_text("machine api.wandb.ai login user password key\n")
    assert has_wandb_account()
    monkeypatch.setenv("WANDB_BASE_URL", "http://wandb.local:8080")
    assert not has_wandb_account()
    (home / "other").write_text("machine wandb.local:8080 login user password key\n")
    monkeypatch.setenv("NETRC", str(home / "other"))
    assert has_wandb_account()


def test_the_settings_file_has_one_or_names_the_server(home):
    settings = home / ".config" / "wandb" / "settings"
    settings.parent.mkdir(parents=True)
    settings.write_text("[default]\nbase_url = http://wandb.local\n")
    (home / ".netrc").write_text("machine wandb.local login user password key\n")
    assert has_wandb_account()
    (home / ".netrc").unlink()
    assert not has_wandb_account()
    settings.write_text("[default]\napi_key = key\n")
    assert has_wandb_account()


def test_a_damaged_netrc_file_has_none(home):
    (home / ".netrc").write_text("machine")
    assert not has_wandb_account()
