"""The commands that the README and each `run.sh` of experiments tell users to type are ones that the program takes."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from src import config

_COMMAND = re.compile(r"^ {4}python -m src\.run (.*)$", re.MULTILINE)
_SCRIPTS = sorted(Path("experiments").glob("*/run.sh"))
# What scripts take that is no folder.
_ARGUMENTS = {"sae_1n": ["camelyon16_conch"], "slurm": ["2", "exp=camelyon16_conch"]}
# Notes what it is asked for; a program from standard input is run, and what a table would choose is `seed=0`.
_PYTHON = """#!/usr/bin/env bash
if [ "$1" = - ]; then exec {python} -; fi
line=$(printf '%s\\x1f' "$@"); printf '%s\\n' "$line" >> {noted}  # at once: a script may start several side by side
if [ "$2" != src.run ]; then echo seed=0; fi
"""
# Notes what job.sbatch would pass on.
_SBATCH = """#!/usr/bin/env bash
while [[ "$1" != *.sbatch ]]; do shift; done
shift
python -m src.run "$@"
echo 1
"""


def commands_of_the_readme():
    text = Path("README.md").read_text().replace("\\\n", " ")
    words = [shlex.split(found, comments=True) for found in _COMMAND.findall(text)]
    # `...` stands for what was typed before, `<folder>` for a path of the user's.
    return [[re.sub(r"<.*?>", "x", word) for word in typed] for typed in words if "..." not in typed]


def commands_of_a_script(script, folder):
    """Runs a script with a `python` that notes what it is asked for."""
    noted = folder / "noted"
    for name, text in (("python", _PYTHON), ("sbatch", _SBATCH)):
        (folder / name).write_text(text.replace("{noted}", str(noted)).replace("{python}", sys.executable))
        (folder / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
    n_arguments = max(map(int, re.findall(r"\$(\d)", script.read_text())), default=0)
    folders = [str(folder / str(number + 1)) for number in range(n_arguments)]
    arguments = _ARGUMENTS.get(script.parent.name, folders)
    subprocess.run(["bash", script, *arguments], env=environment, check=True, capture_output=True)
    asked = [line.split("\x1f")[:-1] for line in noted.read_text().split("\n")]
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
