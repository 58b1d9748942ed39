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
GATES = {"relu": nn.relu, "sigmoid": nn.sigmoid}

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
        gate: what ends the gates: 'relu' as in their code, or 'sigmoid'.
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

        def bottleneck(x: jax.Array, level: int) -> jax.Array:
            channels = x.shape[-1]
            added = block(f"down{level}_narrow", channels // 2, 1)(x)
            added = block(f"down{level}_middle", channels // 2, 3)(added)
            added = block(f"down{level}_wide", channels, 1)(added)
            return jnp.concatenate([x, added], axis=-1)

        # A gate is a block of 1x1 convolutions on a map of one pixel.
        gate = _means(block("colours", 30, 1)(x))
        gate = block("gate_narrow", 5, 1, end)(gate)
        gate = block("gate_wide", 30, 1, end)(gate)
        scope = [block("scope_start", 6, 3)(x)]
        again = block("scope_again", 6, 3)
        for _ in range(4):
            scope.append(again(scope[-1]))
        top = jnp.concatenate(scope, axis=-1) * gate

        x = layers.max_pool(block("stem", 32, 5)(top))
        skips = [top]
        for level in (1, 2, 3):
            skips.append(x)
            x = layers.max_pool(bottleneck(x, level))
        bottom = x = block("bottom", 256, 5)(x)
        for level, features in ((3, 128), (2, 64), (1, 32)):
            x = jnp.concatenate([up(x, level, features), skips.pop()], axis=-1)
            x = block(f"up{level}_mix", x.shape[-1], 5)(x)
        x = jnp.concatenate([up(x, 0, 16), skips.pop()], axis=-1)
        x = block("top_narrow", 8, 3)(block("top_mix", 32, 3)(x))
        x = x * block("top_gate", 8, 1, end)(_means(bottom))
        x = block("classes_mix", 8, 3)(x)
        return block("classes", self.num_classes, 3)(x).astype(jnp.float32)


def _means(x: jax.Array) -> jax.Array:
    """Each channel's mean over the image: [B, H, W, C] -> [B, 1, 1, C]."""
    return jnp.mean(x, axis=(1, 2), keepdims=True)
