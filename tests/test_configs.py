"""Every config trains a step, and every field it has is read."""

import contextlib
import importlib.util
import pathlib
from collections.abc import Callable, Iterator

import jax
import ml_collections
import pytest

from defect_jax import checkpoint, run
from defect_jax.evaluate import evaluate
from defect_jax.methods import make_method
from defect_jax.train import phase_ends, train

CONFIGS = sorted(
    path for path in (pathlib.Path(__file__).parents[1] / "configs").glob("*.py")
    if path.stem not in ("default", "__init__")
)  # fmt: skip
NO_VALUE = object()
# Crops of the drawn images of BSData, which are 46 pixels high.
CROPS = {
    "data.frame_height": 40,
    "data.image_size": (32, 64),
    "augment.paste_size": 24,
    "eval.tile": (64, 64),
}
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


@contextlib.contextmanager
def recording(config: ml_collections.ConfigDict) -> Iterator[set[str]]:
    """Yields a set that grows by the fields of the config that are read meanwhile."""
    reads: set[str] = set()
    prefixes: dict[int, str] = {}

    def register(node: ml_collections.ConfigDict, prefix: str) -> None:
        prefixes[id(node)] = prefix
        for key, value in node.items():
            if isinstance(value, ml_collections.ConfigDict):
                register(value, f"{prefix}{key}.")

    def recorded(plain: Callable) -> Callable:
        def read(node, name):
            value = plain(node, name)
            if id(node) in prefixes and not isinstance(value, ml_collections.ConfigDict):
                reads.add(prefixes[id(node)] + name)
            return value

        return read

    register(config, "")
    with pytest.MonkeyPatch.context() as patch:
        for access in ("__getattr__", "__getitem__"):
            plain = getattr(ml_collections.ConfigDict, access)
            patch.setattr(ml_collections.ConfigDict, access, recorded(plain))
        yield reads


@pytest.fixture(scope="module")
def small(shrink):
    """Makes a config small enough for a test, crops and what hangs on their size too."""

    def small(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
        config = shrink(config)
        if config.data.fit == "crop":
            config.update_from_flattened_dict(CROPS)
            config.eval.overlap = 16
            config.method.supervised_levels = min(2, config.method.supervised_levels)
        return config

    return small


@pytest.fixture(scope="module")
def reads_of_runs(small, compile_quickly, tmp_path_factory) -> dict[str, set[str]]:
    """What a whole run reads, by config: one for each kind of step and each dataset."""
    reads = {}
    for name in ("quickstart", "bsdata_residual_unet", "mvtec_f_anogan", "mvtec_ganomaly"):
        workdir = tmp_path_factory.mktemp(name)
        config = run.open_run(
            small(load_config(CONFIGS[0].with_name(f"{name}.py"))), workdir, "train"
        )
        with recording(config) as reads[name]:
            train(config, workdir)
            results = evaluate(config, workdir)
        assert results["step"] == phase_ends(config, make_method(config))[-1]
        assert (workdir / "eval/test/overlays/sheet.png").is_file()
    return reads


def unread(path: pathlib.Path, config: ml_collections.ConfigDict, elsewhere: set[str]) -> set[str]:
    """The fields that a config sets and that neither its method nor anything elsewhere reads."""
    default = flat(load_config(path.with_name("default.py")))
    own = {field for field, value in flat(config).items() if default.get(field, NO_VALUE) != value}
    with recording(config) as reads:
        run.check(config)
    # What a method and its augmentation read, no other method can read in its place.
    shared = {field for field in elsewhere if not field.startswith(("method.", "augment."))}
    return own - reads - shared - READ_BEFORE


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_steps_and_reads_what_it_sets(path, small, reads_of_runs):
    """`run.check` traces a step of every phase, and a prediction."""
    config = load_config(path)
    own = set(flat(config))
    elsewhere = set().union(*reads_of_runs.values())
    assert unread(path, small(config), elsewhere) & own == set()


def test_every_default_is_read_by_some_run(reads_of_runs):
    default = flat(load_config(CONFIGS[0].with_name("default.py")))
    assert default.keys() - set().union(*reads_of_runs.values()) - READ_BEFORE == set()


def test_an_unread_field_is_found(small, reads_of_runs):
    path = CONFIGS[0].with_name("mvtec_vae.py")
    config = small(load_config(path))
    config.method.corruption = ml_collections.ConfigDict({"name": "none"})
    elsewhere = set().union(*reads_of_runs.values())
    assert unread(path, config, elsewhere) == {"method.corruption.name"}


PARAMETERS = {
    "quickstart": 1_050_599,
    "bsdata_unet": 1_942_594,
    "bsdata_residual_unet": 2_033_480,
    "bsdata_znet": 4_395_009,
    "bsdata_adversarial": 2_741_256,
    "mvtec_autoencoder": 1_050_599,
    "mvtec_ssim_net": 2_082_118,
    "mvtec_ssim_net_lite": 611_330,
    "mvtec_multiscale_ssim": 2_082_118,
    "mvtec_red_net": 2_772_870,
    "mvtec_dcgan_autoencoder": 95_710_464,
    "mvtec_constrained_autoencoder": 95_710_464,
    "mvtec_vae": 98_987_264,
    "mvtec_constrained_vae": 98_987_264,
    "mvtec_spatial_vae": 1_712_966,
    "mvtec_adversarial_autoencoder": 140_321_536,
    "mvtec_ganomaly": 188_176_640,
    "mvtec_srgan": 5_947_084,
    "mvtec_f_anogan": 140_321_536,
    "mvtec_denoising_autoencoder": 1_942_611,
    "mvtec_deblurring": 1_942_611,
    "mvtec_inpainting": 1_942_611,
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_parameter_count(path):
    """Of all players together; those of each network are worked out in its own test."""
    config = load_config(path)
    params = checkpoint.abstract_state(config, make_method(config)).params
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == PARAMETERS[path.stem]
