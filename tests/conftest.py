"""Fixtures that several test folders share."""

import contextlib
import json
import os
import pathlib
import resource
import tempfile

import jax
import ml_collections
import numpy as np
import pytest
from PIL import Image

from defect_jax.data import synthetic

# The same few programs are compiled by many tests, by their sub-processes, and by the processes
# that share the tests; the first of these makes the folder.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="defect_jax_compiled_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

_DEFAULT_DATA = pathlib.Path(__file__).parents[1] / "../shared/data"


# For processes of which a test takes few steps, so that most of their time goes into the compiler.
COMPILE_QUICKLY = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


@pytest.fixture(scope="session")
def quick_environment():
    """An environment of processes with so many virtual devices, in which programs compile fast."""

    def quick_environment(devices: int) -> dict[str, str]:
        count = f"--xla_force_host_platform_device_count={devices}"
        return os.environ | {"XLA_FLAGS": f"{count} {COMPILE_QUICKLY}", "JAX_PLATFORMS": "cpu"}

    return quick_environment


@pytest.fixture(scope="module")
def compile_quickly():
    """While a module is tested, programs compile fast and run slowly: for runs of few steps."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def data_root() -> pathlib.Path:
    """The folder of real images (`mvtec/`, `bsdata/`); skips the test where there is none."""
    root = pathlib.Path(os.environ.get("DEFECT_JAX_DATA", _DEFAULT_DATA)).resolve()
    if not root.is_dir():
        pytest.skip(f"no real images at {root}: set DEFECT_JAX_DATA to their folder")
    return root


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> str:
    """One folder of prepared datasets for the whole session."""
    return str(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="session")
def mvtec_root(tmp_path_factory) -> pathlib.Path:
    """A drawn folder in MVTec AD's layout: category 'part', 12 good, 2 + 2 test images."""
    root = tmp_path_factory.mktemp("mvtec")
    for name, defect, count in [
        ("train/good", "good", 12),
        ("test/good", "good", 2),
        ("test/spot", "spot", 2),
    ]:
        for index in range(count):
            image, mask = synthetic.draw(len(name), index, "gear", defect, (48, 48))
            _write_png(root / "part" / name / f"{index:03}.png", image)
            if defect != "good":
                mask_path = root / "part/ground_truth" / defect / f"{index:03}_mask.png"
                _write_png(mask_path, 255 * mask)
    return root


@pytest.fixture(scope="session")
def bsdata_root(tmp_path_factory) -> pathlib.Path:
    """A drawn folder in BSData's layout: 5 places with 2 labelled frames and 8 normal ones."""
    root = tmp_path_factory.mktemp("bsdata")
    entries = []
    for place in range(5):
        for hour in range(10):
            labelled = hour >= 8
            name = f"01_20090{1 + place}{10 + hour}0000_{100 + place}500_045_crop_2"
            _write_png(root / "data" / f"{name}.jpg", _steel(place, hour, labelled))
            split = (("train", "test")[hour % 2]) if labelled else None
            entries.append(
                {"filename": f"{name}.jpg", "train_test_split": split, "type": 2, "wear_dev": [],
                 "annotations": f"{name}.json" if labelled else None}
            )  # fmt: skip
            if labelled:
                _write_label(root / "label" / f"{name}.json", f"{name}.jpg")
    (root / "image_data.json").write_text(json.dumps({"images": entries}))
    return root


@pytest.fixture(scope="session")
def shrink(mvtec_root, bsdata_root, prepared):
    """Makes a config small enough for a test; what it is made of stays."""

    def shrink(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
        config.data.cache_dir = prepared
        config.train.update(batch_size=4, num_steps=2, log_every=1, checkpoint_every=1)
        config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, 1)
        config.eval.update(batch_size=4, bootstrap_samples=100, num_shown=3, max_flagged_pixels=20)
        if config.data.name == "synthetic":
            config.data.synthetic.update(num_train=12, num_test_good=2, num_test_per_defect=1)
        if config.data.name == "mvtec":
            config.data.update(root=str(mvtec_root), category="part")
            if config.method.model != "bergmann":  # which takes 128x128 pixels only
                config.data.image_size = (64, 64)
        if config.data.name == "bsdata":
            config.data.update(root=str(bsdata_root), image_size=(32, 64))
        for field, least in {"width": 4, "depth": 2, "encoder_steps": 2}.items():
            if field in config.method:
                config.method[field] = least
        return config

    return shrink


@pytest.fixture
def full_disk():
    """A context in which no file grows beyond so many bytes: writing fails, as the kernel says."""

    @contextlib.contextmanager
    def full_disk(bytes_left: int):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return full_disk


def _write_png(path: pathlib.Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _steel(place: int, hour: int, pitted: bool) -> np.ndarray:
    noise = np.random.default_rng([place, hour]).normal(120, 10, (46, 113, 3))
    if pitted:
        noise[20:30, 40:60] = 30
    return noise.clip(0, 255).astype(np.uint8)


def _write_label(path: pathlib.Path, image: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    points = [[40, 20], [60, 20], [60, 30], [40, 30]]
    shape = {"label": "Pitting", "points": points, "shape_type": "polygon", "group_id": None}
    label = {"shapes": [shape], "imagePath": image, "imageHeight": 46, "imageWidth": 113}
    path.write_text(json.dumps(label))
