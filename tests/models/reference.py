"""Networks computed in NumPy, from a list of their layers and the parameters of a flax module.

The tests write each list down as its source states it, so that a network which differs from its
source in a kernel, a stride, a skip or an activation differs in its results.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy import special

_ACTIVATIONS = {
    "none": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "leaky": lambda x: np.where(x > 0, x, 0.2 * x),
    "sigmoid": special.expit,
}


class Layer(NamedTuple):
    """A convolution, its normalisation and its activation; numbers as PyTorch has them."""

    kind: str  # 'conv', or 'up' for a transposed convolution
    features: int
    size: int | tuple[int, int]
    stride: int
    pad: int
    norm: str
    activation: str


def conv(features, size, stride=1, pad=0, norm="batch", activation="relu") -> Layer:
    return Layer("conv", features, size, stride, pad, norm, activation)


def up(features, size, stride=1, pad=0, norm="batch", activation="relu") -> Layer:
    return Layer("up", features, size, stride, pad, norm, activation)


class Network:
    """Runs layers with a module's parameters, those of each kind in order of their creation."""

    def __init__(self, variables: Any, *path: str):
        """The variables of the module, or of that part of it to which the path of names leads."""
        self._params, self._stats = variables["params"], variables.get("batch_stats", {})
        for name in path:
            self._params, self._stats = self._params[name], self._stats.get(name, {})
        self._taken: list[str] = []

    def run(self, x: np.ndarray, *layers: Layer) -> np.ndarray:
        """Maps [B, H, W, C] through the layers, float64."""
        x = np.asarray(x, np.float64)
        for layer in layers:
            params = self.take("Conv" if layer.kind == "conv" else "ConvTranspose")
            size = np.broadcast_to(layer.size, 2)
            assert params["kernel"].shape == (*size, x.shape[-1], layer.features)
            apply = convolve if layer.kind == "conv" else convolve_transpose
            x = self._normalize(apply(x, params, layer.stride, layer.pad), layer.norm)
            x = _ACTIVATIONS[layer.activation](x)
        return x

    def take(self, kind: str) -> Any:
        """The parameters of the next layer of a kind."""
        name = f"{kind}_{sum(taken.startswith(f'{kind}_') for taken in self._taken)}"
        self._taken.append(name)
        return self._params[name]

    def _normalize(self, x: np.ndarray, norm: str) -> np.ndarray:
        if norm == "none":
            return x
        params = self.take("BatchNorm" if norm == "batch" else "GroupNorm")
        if norm == "batch":
            return normalize(x, params, self._stats[self._taken[-1]])
        batch, *side, channels = x.shape
        groups = x.reshape(batch, -1, min(8, channels), channels // min(8, channels))
        mean, var = (f(groups, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
        groups = ((groups - mean) / np.sqrt(var + 1e-5)).reshape(batch, *side, channels)
        return groups * params["scale"] + params["bias"]

    def assert_gives(self, actual: Any, expected: np.ndarray) -> None:
        """That all parameters were taken, and that results agree which differ from each other."""
        assert set(self._taken) == self._params.keys()
        scale = np.abs(expected).max()
        assert expected.std() > 0.02 * scale
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4 * scale)


def convolve(x: np.ndarray, params: Any, stride: int = 1, pad: int = 0) -> np.ndarray:
    """Zeros of the width `pad` around the image; each tap of the kernel adds its product."""
    kernel = params["kernel"]
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    height, width = (
        (side - size) // stride + 1 for side, size in zip(x.shape[1:3], kernel.shape, strict=False)
    )
    out = np.zeros((len(x), height, width, kernel.shape[-1]))
    for row, column in np.ndindex(kernel.shape[:2]):
        part = x[:, row : row + stride * height : stride, column : column + stride * width : stride]
        out += part[:, :height, :width] @ kernel[row, column]
    return out + params.get("bias", 0.0)


def convolve_transpose(
    x: np.ndarray, params: Any, stride: int = 1, pad: int = 0, more: int = 0
) -> np.ndarray:
    """Each pixel adds the kernel, which flax keeps mirrored, at `stride` times its coordinates.

    `pad` is cut off on each side, and `more` is added at the far ones.
    """
    kernel = params["kernel"][::-1, ::-1]
    height, width = x.shape[1:3]
    spare = stride + max(kernel.shape[:2]) + more
    out = np.zeros((len(x), stride * height + spare, stride * width + spare, kernel.shape[-1]))
    for row, column in np.ndindex(kernel.shape[:2]):
        rows = slice(row, row + stride * height, stride)
        columns = slice(column, column + stride * width, stride)
        out[:, rows, columns] += x @ kernel[row, column]
    bottom, right = (
        (side - 1) * stride + size - pad + more
        for side, size in zip(x.shape[1:3], kernel.shape, strict=False)
    )
    return out[:, pad:bottom, pad:right] + params.get("bias", 0.0)


def normalize(x: np.ndarray, params: Any, stats: Any) -> np.ndarray:
    """By running averages."""
    x = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
    return x * params["scale"] + params["bias"]


def max_pool(x: np.ndarray) -> np.ndarray:
    """The largest of each 2x2 pixels."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))


def neighbours_max(x: np.ndarray) -> np.ndarray:
    """The largest of the 3x3 pixels around each."""
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    return np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2)).max((-2, -1))
