"""The commands that the README and each `run.sh` of experiments tell users to type are ones that the program takes."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from src import config

_COMMAND = re.compile(r"^ {4}python -m src\.run (.*)$", re.MULTILINE)
# Not run dry: they read what their commands write, take the name of a preset, or call sbatch.
_OF_THEIR_OWN = ("mil_benchmarks", "sae_1n", "slurm")
_SCRIPTS = sorted(path for path in Path("experiments").glob("*/run.sh") if path.parent.name not in _OF_THEIR_OWN)


def commands_of_the_readme():
    text = Path("README.md").read_text().replace("\\\n", " ")
    words = [shlex.split(found, comments=True) for found in _COMMAND.findall(text)]
    # `...` stands for what was typed before, `<folder>` for a path of the user's.
    return [[re.sub(r"<.*?>", "x", word) for word in typed] for typed in words if "..." not in typed]


def commands_of_a_script(script, folder):
    """Runs a script with a `python` that notes what it is asked for."""
    noted = folder / "noted"
    python = folder / "python"
    python.write_text(f'#!/usr/bin/env bash\nprintf "%s\\0" "$@" >> {noted}; printf "\\n" >> {noted}\n')
    python.chmod(0o755)
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
    n_arguments = max(map(int, re.findall(r"\$(\d)", script.read_text())), default=0)
    arguments = [str(folder / str(number + 1)) for number in range(n_arguments)]
    subprocess.run(["bash", script, *arguments], env=environment, check=True, capture_output=True)
    asked = [line.split("\0")[:-1] for line in noted.read_text().splitlines()]
    return [words[2:] for words in asked if words[:2] == ["-m", "src.run"]]


def compose(typed):
    config.register_resolvers()
    given = [_first(word) for word in typed if not word.startswith("-")]
    given = [word for word in given if not re.match(r"\w+_run=", word)]  # there is no such run here
    config.resolve(config.compose(given))


def _first(word):
    override = OverridesParser.create().parse_override(word)
    if not override.is_sweep_override():
        return word
    return f"{override.key_or_group}={next(iter(override.sweep_string_iterator()))}"


def test_the_readme_has_commands():
    assert len(commands_of_the_readme()) > 20


@pytest.mark.slow
@pytest.mark.parametrize("typed", commands_of_the_readme(), ids=" ".join)
def test_a_command_of_the_readme_is_taken(typed):
    compose(typed)


@pytest.mark.slow
@pytest.mark.parametrize("script", _SCRIPTS, ids=lambda script: script.parent.name)
def test_commands_of_a_script_are_taken(script, tmp_path):
    for typed in commands_of_a_script(script, tmp_path):
        compose(typed)
