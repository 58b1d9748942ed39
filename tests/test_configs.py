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
NO_VALUE = object()
# Read when a run is opened: the name of its row, the draw of validation images, the digest.
READ_BEFORE = {"data.category", "data.validation_fraction", "data.train_digest"}


def load_config(path: pathlib.Path) -> ml_collections.ConfigDict:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def flat(config: ml_collections.ConfigDict, prefix: str = "") -> dict[str, object]:
    values: dict[str, object] = {}
    for key, value in config.items():
        nested = isinstance(value, ml_collections.ConfigDict)
        values |= flat(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return values


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


@pytest.fixture(scope="module")
def all_reads() -> dict[str, set[str]]:
    """Config -> the fields that its training and evaluation read; filled by the tests."""
    return {}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_trains_evaluates_and_reads_what_it_sets(
    path, shrink, tmp_path, record_reads, all_reads
):
    config = load_config(path)
    default = flat(load_config(path.with_name("default.py")))
    own = {field for field, value in flat(config).items() if default.get(field, NO_VALUE) != value}
    config = run.open_run(shrink(config), tmp_path, "train")
    reads = record_reads(config)
    train(config, tmp_path)
    results = evaluate(config, tmp_path)
    assert results["step"] == config.train.num_steps
    all_reads[path.stem] = reads | READ_BEFORE
    assert own - all_reads[path.stem] == set()


def test_every_default_is_read_by_some_config(all_reads):
    if len(all_reads) < len(CONFIGS):
        pytest.skip("needs the test of every config to have run before")
    default = flat(load_config(CONFIGS[0].with_name("default.py")))
    assert default.keys() - set().union(*all_reads.values()) == set()


def test_an_unread_field_is_found(shrink, tmp_path, record_reads):
    config = load_config(CONFIGS[0])
    config.method.no_such_thing = 1
    reads = record_reads(config)
    assert config.seed == 0
    assert "method.no_such_thing" in flat(config).keys() - reads and "seed" in reads
