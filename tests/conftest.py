"""Fixtures that several test folders share."""

import os
import pathlib

import pytest

_DEFAULT_DATA = pathlib.Path(__file__).parents[1] / "../shared/data"


@pytest.fixture(scope="session")
def data_root() -> pathlib.Path:
    """The folder of real images (`mvtec/`, `bsdata/`); skips the test where there is none."""
    root = pathlib.Path(os.environ.get("DEFECT_JAX_DATA", _DEFAULT_DATA)).resolve()
    if not root.is_dir():
        pytest.skip(f"no real images at {root}: set DEFECT_JAX_DATA to their folder")
    return root
