"""Every config trains a step and is evaluated, and every field it has is read."""

import importlib.util
import pathlib

import ml_collections
import pytest

from defect_jax import run
from defect_jax.evaluate import evaluate
from defect_jax.train import train

CONFIGS = sorted(
    path for path in (pathlib.Path(__file__).parents[1] / "configs").glob("*.py")
    if path.stem not in ("default", "__init__")
)  # fmt: skip


def load_config(path: pathlib.Path) -> ml_collections.ConfigDict:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def leaves(config: ml_collections.ConfigDict, prefix: str = "") -> set[str]:
    names: set[str] = set()
    for key, value in config.items():
        nested = isinstance(value, ml_collections.ConfigDict)
        names |= leaves(value, f"{prefix}{key}.") if nested else {prefix + key}
    return names


@pytest.fixture
def record_reads(monkeypatch):
    """Calling it with a config begins to record; the returned set grows by the fields read."""

    def begin(config: ml_collections.ConfigDict) -> set[str]:
        reads: set[str] = set()
        prefixes: dict[int, str] = {}

        def register(node: ml_collections.ConfigDict, prefix: str) -> None:
            prefixes[id(node)] = prefix
            for key, value in node.items():
                if isinstance(value, ml_collections.ConfigDict):
                    register(value, f"{prefix}{key}.")

        register(config, "")
        plain = ml_collections.ConfigDict.__getattr__

        def recording(node, name):
            value = plain(node, name)
            if id(node) in prefixes and not isinstance(value, ml_collections.ConfigDict):
                reads.add(prefixes[id(node)] + name)
            return value

        monkeypatch.setattr(ml_collections.ConfigDict, "__getattr__", recording)
        return reads

    return begin


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_trains_evaluates_and_reads_every_field(path, shrink, tmp_path, record_reads):
    config = shrink(load_config(path))
    config = run.open_run(config, tmp_path, "train")
    fields = leaves(config)
    reads = record_reads(config)
    train(config, tmp_path)
    results = evaluate(config, tmp_path)
    assert results["step"] == config.train.num_steps
    # What only drawing the validation images reads, which `open_run` did.
    reads.add("data.validation_fraction")
    assert fields - reads == set()


def test_an_unread_field_is_found(shrink, tmp_path, record_reads):
    config = load_config(CONFIGS[0])
    config.method.no_such_thing = 1
    reads = record_reads(config)
    assert config.seed == 0
    assert "method.no_such_thing" in leaves(config) - reads and "seed" in reads
