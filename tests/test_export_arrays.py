"""A dataset as arrays is the dataset."""

import importlib.util
import pathlib

import numpy as np
import pytest

from configs import mvtec_autoencoder
from defect_jax.data import datasets, pipeline
from defect_jax.errors import UserError


@pytest.fixture(scope="module")
def export():
    path = pathlib.Path(__file__).parents[1] / "experiments/export_arrays.py"
    spec = importlib.util.spec_from_file_location("export_arrays", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.export


def test_exported_arrays_are_what_the_files_decode_to(export, shrink, tmp_path):
    config = shrink(mvtec_autoencoder.get_config())
    config.data.image_size = (24, 32)
    path = tmp_path / "part.npz"
    assert export(config, path) == {"train": 12, "test": 4}
    of_arrays = config.copy_and_resolve_references()
    of_arrays.data.update(name="arrays", root=str(path))
    for split in ("train", "validation", "test"):
        config.data.validation_files = of_arrays.data.validation_files = ("train/good/003.png",)
        files, loaded = (datasets.load_split(one, split) for one in (config, of_arrays))
        expected = pipeline.decode_all(config.data, files)
        for name, values in pipeline.decode_all(of_arrays.data, loaded).items():
            np.testing.assert_array_equal(values, expected[name])
        np.testing.assert_array_equal(loaded.filename, files.filename)
        np.testing.assert_array_equal(loaded.defect_type, files.defect_type)
    with pytest.raises(UserError, match=r"part.npz is there already"):
        export(config, path)
