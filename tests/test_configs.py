"""Every config trains a step, and every field it has is read."""

import importlib.util
import pathlib

import jax
import ml_collections
import pytest

from defect_jax import checkpoint, run
from defect_jax.devices import AXIS
from defect_jax.evaluate import evaluate
from defect_jax.methods import make_method
from defect_jax.train import phase_ends, train

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


def step_abstractly(config: ml_collections.ConfigDict) -> None:
    """Traces init, a step of every phase, and predict; computes nothing."""
    method = make_method(config)
    state = checkpoint.abstract_state(config, method)
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((config.train.batch_size, *leaf.shape[1:]), leaf.dtype),
        checkpoint.example_batch(config),
    )
    for phase in method.phases:
        step = jax.vmap(phase.train_step, axis_name=AXIS, in_axes=(None, 0), out_axes=None)
        one_device = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), batch
        )
        after, metrics = jax.eval_shape(step, state, one_device)
        assert jax.tree.structure(after) == jax.tree.structure(state)
        assert jax.tree.map(lambda leaf: leaf.shape, after) == jax.tree.map(
            lambda leaf: leaf.shape, state
        )
        assert metrics["loss"].shape == ()
    prediction = jax.eval_shape(method.predict, state, batch)
    assert prediction["score"].shape == (config.train.batch_size,)
    assert prediction["score_map"].shape == batch["mask"].shape


@pytest.fixture(scope="module")
def reads_of_runs() -> dict[str, set[str]]:
    """Config -> the fields that its whole run reads; filled by the tests."""
    return {}


@pytest.mark.parametrize("name", ["quickstart", "bsdata_unet", "mvtec_f_anogan", "mvtec_ganomaly"])
def test_config_trains_and_evaluates(name, shrink, tmp_path, record_reads, reads_of_runs):
    """One config for each kind of step and each dataset, as a user runs it."""
    config = load_config(CONFIGS[0].with_name(f"{name}.py"))
    config = run.open_run(shrink(config), tmp_path, "train")
    reads = record_reads(config)
    train(config, tmp_path)
    results = evaluate(config, tmp_path)
    assert results["step"] == phase_ends(config, make_method(config))[-1]
    assert (tmp_path / "eval/test/overlays/sheet.png").is_file()
    reads_of_runs[name] = reads


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_steps_and_reads_what_it_sets(path, shrink, record_reads, reads_of_runs):
    if len(reads_of_runs) < 4:
        pytest.skip("needs the runs above to have run before")
    config = load_config(path)
    default = flat(load_config(path.with_name("default.py")))
    own = {field for field, value in flat(config).items() if default.get(field, NO_VALUE) != value}
    config = shrink(config)
    reads = record_reads(config)
    run.check(config)
    step_abstractly(config)
    # What the loop and the evaluation read is the same for all configs, but for their datasets.
    others = {field for reads_of_run in reads_of_runs.values() for field in reads_of_run}
    others = {field for field in others if not field.startswith(("method.", "augment."))}
    assert own - reads - others - READ_BEFORE == set()


def test_every_default_is_read_by_some_run(reads_of_runs):
    if len(reads_of_runs) < 4:
        pytest.skip("needs the runs above to have run before")
    default = flat(load_config(CONFIGS[0].with_name("default.py")))
    assert default.keys() - set().union(*reads_of_runs.values()) - READ_BEFORE == set()


def test_an_unread_field_is_found(shrink, tmp_path, record_reads):
    config = load_config(CONFIGS[0])
    config.method.no_such_thing = 1
    reads = record_reads(config)
    assert config.seed == 0
    assert "method.no_such_thing" in flat(config).keys() - reads and "seed" in reads
