"""ZNet: a small segmenter for pits on ball screws."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from defect_jax import errors
from defect_jax.models import layers

ACTIVATIONS = {"relu": nn.relu, "gelu": functools.partial(nn.gelu, approximate=False)}
GATES = ACTIVATIONS | {"sigmoid": nn.sigmoid}

# PyTorch's ConvTranspose2d(kernel 3, stride 2, padding 1, output_padding 1).
_DOUBLING = ((1, 2), (1, 2))


class _Block(nn.Module):
    """Convolution, batch normalisation, activation. Called again, it is the same layer."""

    features: int
    size: int
    train: bool
    activation: Callable[[jax.Array], jax.Array]
    dtype: Any
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel_size = (self.size, self.size)
        x = layers.Conv(self.features, kernel_size, padding=self.size // 2, dtype=self.dtype)(x)
        x = layers.BatchNorm(self.train, self.dtype, self.axis_name)(x)
        return self.activation(x)


class ZNet(nn.Module):
    """The segmenter of the project `surface-defect-detection`, 4,395,009 parameters.

    A convolution is applied to its own result again and again and all results are kept (the scope),
    so that one shared kernel sees neighbourhoods of several sizes. An image's mean colours gate
    these channels. Then come an encoder of bottlenecks that concatenate what others would add, and
    a decoder with skips, whose last channels the bottom's means gate.

    Source: https://github.com/looog-e/surface-defect-detection (code/SegNet.py, commit 22ffa10).
    The logits are the last layer's result, which has been through the activation like every other.
    Running variances are those of the batch, not PyTorch's times n / (n - 1): for the gates, whose
    n is the batch's size, that is half theirs with a batch of two.

    Attributes:
        num_classes: channels of the result; theirs has 2.
        activation: 'relu' as in their code, or 'gelu' as in their figure.
        gate: what ends the gates: 'relu' as in their code, 'gelu' or 'sigmoid'.
        dtype: of the computation; parameters and the result are float32.
        axis_name: mapped axis to average batch statistics over; see `layers.normalization`.
    """

    num_classes: int = 2
    activation: str = "relu"
    gate: str = "relu"
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Labels pixels.

        Args:
            x: [B, H, W, C] float32; H and W are multiples of 16.
            train: True normalises by the batch's statistics, False by the running averages. The
                gates have one number a channel and image, so training takes two images or more.

        Returns:
            Logits [B, H, W, num_classes] float32.

        Raises:
            UserError: the size is not a multiple of 16, or an unknown activation or gate.
        """
        layers.check_multiple("znet", x.shape, 16)
        activation = errors.lookup(ACTIVATIONS, self.activation, "method.activation")
        end = errors.lookup(GATES, self.gate, "method.gate")
        shared = {"train": train, "dtype": self.dtype, "axis_name": self.axis_name}

        def block(name: str, features: int, size: int, act: Callable = activation) -> _Block:
            return _Block(features, size, activation=act, **shared, name=name)

        def up(x: jax.Array, level: int, features: int) -> jax.Array:
            layer = layers.ConvTranspose(
                features, (3, 3), (2, 2), _DOUBLING, dtype=self.dtype, name=f"up{level}"
            )
            return activation(layers.BatchNorm(**shared, name=f"up{level}_norm")(layer(x)))

        top = _gate(block, end, x) * _scope(block, x)
        bottom, skips = _encode(block, top)
        x = _decode(block, up, bottom, skips)
        x = x * block("top_gate", 8, 1, end)(_means(bottom))
        x = block("classes_mix", 8, 3)(x)
        return block("classes", self.num_classes, 3)(x).astype(jnp.float32)


# The parts below make their layers inside `ZNet.__call__`: `block` and `up` are its own, and `end`
# is what ends a gate.


def _gate(block: Callable, end: Callable, x: jax.Array) -> jax.Array:
    """How much each of the scope's 30 channels counts, by the image's mean colours."""
    # Blocks of 1x1 convolutions on a map of one pixel: dense layers.
    means = _means(block("colours", 30, 1)(x))
    return block("gate_wide", 30, 1, end)(block("gate_narrow", 5, 1, end)(means))


def _scope(block: Callable, x: jax.Array) -> jax.Array:
    scope = [block("scope_start", 6, 3)(x)]
    again = block("scope_again", 6, 3)
    for _ in range(4):
        scope.append(again(scope[-1]))
    return jnp.concatenate(scope, axis=-1)


def _encode(block: Callable, top: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
    """The bottom, of 1/16 of the size, and the maps of 1, 1/2, 1/4 and 1/8 for the decoder."""
    x = layers.max_pool(block("stem", 32, 5)(top))
    skips = [top]
    for level in (1, 2, 3):
        skips.append(x)
        channels = x.shape[-1]
        added = block(f"down{level}_narrow", channels // 2, 1)(x)
        added = block(f"down{level}_middle", channels // 2, 3)(added)
        added = block(f"down{level}_wide", channels, 1)(added)
        x = layers.max_pool(jnp.concatenate([x, added], axis=-1))
    return block("bottom", 256, 5)(x), skips


def _decode(block: Callable, up: Callable, x: jax.Array, skips: list[jax.Array]) -> jax.Array:
    for level, features in ((3, 128), (2, 64), (1, 32)):
        x = jnp.concatenate([up(x, level, features), skips[level]], axis=-1)
        x = block(f"up{level}_mix", x.shape[-1], 5)(x)
    x = jnp.concatenate([up(x, 0, 16), skips[0]], axis=-1)
    return block("top_narrow", 8, 3)(block("top_mix", 32, 3)(x))


def _means(x: jax.Array) -> jax.Array:
    """Each channel's mean over the image: [B, H, W, C] -> [B, 1, 1, C]."""
    return jnp.mean(x, axis=(1, 2), keepdims=True)
