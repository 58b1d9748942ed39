"""What the README says can be done can be done: files, configs and fields exist."""

import importlib
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"python -m defect_jax\.main (?:.*\\\n)*.*", TEXT)


def test_there_are_commands():
    assert len(COMMANDS) >= 2


@pytest.mark.parametrize("command", COMMANDS)
def test_command_names_a_config_and_its_fields(command):
    path = re.search(r"--config=configs/(\w+)\.py", command)[1]
    config = importlib.import_module(f"configs.{path}").get_config()
    for field in re.findall(r"--config\.([\w.]+)=", command):
        for part in field.split("."):
            config = config[part]
        config = importlib.import_module(f"configs.{path}").get_config()


@pytest.mark.parametrize("path", re.findall(r"`((?:configs|experiments)/[\w/.]+)`", TEXT))
def test_named_file_exists(path):
    assert (ROOT / path).exists()


def test_python_snippet_imports_what_exists():
    for module, name in re.findall(r"from (defect_jax[\w.]*) import (\w+)", TEXT):
        assert hasattr(importlib.import_module(module), name)
