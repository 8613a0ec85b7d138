import builtins
import collections
import os
import pickle
import subprocess
import sys
import zipfile
from types import ModuleType

import pytest
import torch

from src.safe_pickle import StandIn, attributes, load_checkpoint


class Call:
    """Pickles as a call of a function with arguments."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.fixture
def foreign(monkeypatch):
    """A module that only the writer of a pickle has."""
    module = ModuleType("far.away")
    exec("class Config:\n    pass\nclass Slotted:\n    __slots__ = ('width',)", module.__dict__)
    for thing in (module.Config, module.Slotted):
        thing.__module__ = "far.away"
    monkeypatch.setitem(sys.modules, "far", ModuleType("far"))
    monkeypatch.setitem(sys.modules, "far.away", module)
    return module


def _save(tmp_path, value, **options):
    torch.save(value, tmp_path / "a.pt", **options)
    return tmp_path / "a.pt"


def test_plain_checkpoints_come_back(tmp_path):
    state = collections.OrderedDict(a=torch.arange(6.0).view(2, 3)[:, 1:], b=torch.ones(2, dtype=torch.bfloat16))
    loaded = load_checkpoint(_save(tmp_path, {"state": state, "k": 3, "cfg": {"dtype": torch.float32, "x": None}}))
    assert loaded["cfg"] == {"dtype": torch.float32, "x": None}
    assert loaded["k"] == 3
    assert all(torch.equal(loaded["state"][name], value) for name, value in state.items())


def test_legacy_checkpoints_come_back(tmp_path):
    path = _save(tmp_path, {"a": torch.ones(2)}, _use_new_zipfile_serialization=False)
    assert torch.equal(load_checkpoint(path)["a"], torch.ones(2))


def test_foreign_objects_become_stand_ins(tmp_path, foreign, monkeypatch):
    config = foreign.Config()
    config.width, config.device, config.inner = 7, torch.device("cpu"), foreign.Config()
    config.inner.names, config.kind = ["a"], foreign.Config
    path = _save(tmp_path, {"cfg": config, "w": torch.ones(3)})
    monkeypatch.delitem(sys.modules, "far.away")
    loaded = load_checkpoint(path)
    values = attributes(loaded["cfg"])
    assert isinstance(loaded["cfg"], StandIn)
    assert (values["width"], values["device"]) == (7, torch.device("cpu"))
    assert attributes(values["inner"]) == {"names": ["a"]}
    assert issubclass(values["kind"], StandIn)
    assert "far.away" not in sys.modules  # reading has not imported it
    assert torch.equal(loaded["w"], torch.ones(3))


def test_content_within_a_file_is_read(tmp_path, foreign):
    config = foreign.Config()
    config.width = 7
    loaded = load_checkpoint("b.pt", _save(tmp_path, config).read_bytes())
    assert attributes(loaded) == {"width": 7}


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, "posix.system"),
        (builtins.eval, "eval"),
        (builtins.exec, "exec"),
        (builtins.getattr, "getattr"),
        (subprocess.Popen, "commands.Popen"),  # protocol 2 spells it as Python 2 did
        (torch.load, "torch.serialization.load"),
        (torch.hub.load, "torch.hub.load"),
        (torch.utils.collect_env.run, "torch.utils.collect_env.run"),
    ],
)
@pytest.mark.parametrize("is_nested", [False, True])
def test_calls_are_refused_by_name(tmp_path, foreign, function, name, is_nested):
    mark = tmp_path / "executed"
    call = Call(function, f"touch {mark}" if name != "exec" else f"open({str(mark)!r}, 'w')")
    config = foreign.Config()
    config.inner = {"list": [1, call]}
    path = _save(tmp_path, {"cfg": config, "state_dict": {"a": torch.ones(1)}} if is_nested else call)
    with pytest.raises(ValueError, match=rf"{path}.*{name}\b.*Nothing of it was run") as caught:
        load_checkpoint(path)
    assert "weights_only=False" not in str(caught.value)
    assert not mark.exists()


def test_state_that_is_set_runs_nothing(tmp_path):
    """BUILD calls __setstate__ where a class has one, and sets attributes where not."""
    path = tmp_path / "a.pt"
    torch.save({"a": 1}, path)
    # posix.system, made as an object without arguments, then its state set to a dict.
    hostile = b"\x80\x02cposix\nsystem\n)\x81}X\x01\x00\x00\x00aK\x01sb."
    _replace_pickle(path, hostile)
    with pytest.raises(ValueError, match=r"posix\.system"):
        load_checkpoint(path)
    _replace_pickle(path, b"\x80\x02cfar.away\nConfig\n)\x81}X\x01\x00\x00\x00aK\x01sb.")
    assert attributes(load_checkpoint(path)) == {"a": 1}


@pytest.mark.parametrize(
    "instructions",
    [
        b"\x80\x02cfar.away\nConfig\nK\x01\x85\x81.",  # made with an argument
        b"\x80\x02cfar.away\nConfig\n)R.",  # called without one
        b"\x80\x02(X\x02\x00\x00\x00lsiposix\nsystem\n.",  # INST
        b"\x80\x02(cposix\nsystem\nX\x02\x00\x00\x00lso.",  # OBJ
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x02ls\x85R.",  # STACK_GLOBAL
        b"\x80\x02\x82\x01.",  # EXT1
        b"not a pickle",
    ],
)
def test_other_ways_to_call_are_refused(tmp_path, instructions):
    path = tmp_path / "a.pt"
    torch.save({"a": 1}, path)
    _replace_pickle(path, instructions)
    with pytest.raises(ValueError, match=rf"Expected {path} to hold tensors"):
        load_checkpoint(path)


def _replace_pickle(path, instructions):
    with zipfile.ZipFile(path) as old:
        records = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for name, content in records.items():
            new.writestr(name, instructions if name.endswith("data.pkl") else content)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"no checkpoint", pickle.dumps({"a": 1})])
def test_other_files_are_named(tmp_path, content):
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"Expected {path} to hold tensors and plain values"):
        load_checkpoint(path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.pt"):
        load_checkpoint(tmp_path / "no.pt")


def test_only_named_values_are_a_configuration():
    with pytest.raises(ValueError, match="got list"):
        attributes([1])
