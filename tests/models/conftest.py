"""What the tests of all networks need; nothing here compiles an initialiser."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest


def _shapes(module: nn.Module, shape: tuple[int, ...]) -> Any:
    return jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros(shape), True))


@pytest.fixture(scope="session")
def shapes_of() -> Callable[[nn.Module, tuple[int, ...]], Any]:
    """(module, shape of its input) -> its variables' shapes and types."""
    return _shapes


@pytest.fixture(scope="session")
def count_of() -> Callable[[nn.Module, tuple[int, ...]], int]:
    """(module, shape of its input) -> its number of parameters."""

    def count(module: nn.Module, shape: tuple[int, ...]) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(_shapes(module, shape)["params"]))

    return count


@pytest.fixture(scope="session")
def variables_of() -> Callable[[nn.Module, tuple[int, ...]], Any]:
    """(module, shape of its input) -> variables with which no layer's result grows or fades much.

    Scales and variances are positive, kernels normal as He et al. 2015 draw them.
    """

    def draw(module: nn.Module, shape: tuple[int, ...]) -> Any:
        rng = np.random.default_rng(0)

        def leaf_of(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
            if path[-1].key == "kernel":
                deviation = np.sqrt(2 / np.prod(leaf.shape[:-1]))
                return rng.normal(0, deviation, leaf.shape).astype(np.float32)
            if path[-1].key in ("mean", "bias"):
                return rng.normal(0, 0.1, leaf.shape).astype(np.float32)
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)

        return jax.tree_util.tree_map_with_path(leaf_of, _shapes(module, shape))

    return draw
