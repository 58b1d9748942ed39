"""The U-Net that labels every pixel."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from defect_jax import errors
from defect_jax.models import layers


class UNet(nn.Module):
    """U-Net with normalisation and padded convolutions, so the map is as large as the image.

    Source: Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597, Figure 1. Residual blocks
    after He et al. 2016, https://arxiv.org/abs/1512.03385, deep supervision after Lee et al. 2015,
    https://arxiv.org/abs/1409.5185.

    Attributes:
        width: channels of the first level; each level down doubles them.
        depth: number of halvings of the resolution.
        num_classes: channels of the result.
        normalization: 'batch', 'group' or 'none'; see `layers.normalization`.
        residual: each block adds its input, brought to its width by a 1x1 convolution.
        supervised_levels: how many levels give logits, 1 for the first only.
        patch_size: each square of so many pixels a side enters as one, its pixels side by side as
            channels, and its logits leave likewise (Shi et al. 2016,
            https://arxiv.org/abs/1609.05158, Section 3.2): with 2, a quarter of the work.
        unit_range: a sigmoid at the end, for a network that gives images.
        dtype: of the computation; parameters and the result are float32.
        axis_name: mapped axis to average batch statistics over; see `layers.normalization`.
    """

    width: int = 32
    depth: int = 4
    num_classes: int = 2
    normalization: str = "batch"
    residual: bool = False
    supervised_levels: int = 1
    patch_size: int = 1
    unit_range: bool = False
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array | tuple[jax.Array, ...]:
        """Labels pixels.

        Args:
            x: [B, H, W, C] float32; H and W are multiples of patch_size * 2**depth.
            train: True normalises by the batch's statistics, False by the running averages.

        Returns:
            Logits [B, H, W, num_classes] float32, or their sigmoid where `unit_range` is set. With
            more than one of `supervised_levels`, a tuple of logits, each at half the size of the
            one before it.

        Raises:
            UserError: the size is no such multiple, the normalisation is unknown, or more levels
                are to be supervised than the decoder has.
        """
        layers.check_multiple("unet", x.shape, self.patch_size * 2**self.depth)
        _check_levels(self.supervised_levels, self.depth)
        norm = layers.normalization(self.normalization, train, self.dtype, self.axis_name)
        use_bias = self.normalization == "none"
        conv = functools.partial(layers.Conv, use_bias=use_bias, dtype=self.dtype)
        block = functools.partial(_block, conv, norm, self.residual)
        x = _to_patches(x, self.patch_size)
        skips = []
        for level in range(self.depth):
            x = block(x, self.width * 2**level)
            skips.append(x)
            x = layers.max_pool(x)
        x = block(x, self.width * 2**self.depth)
        logits: list[jax.Array] = []
        for level in reversed(range(self.depth)):
            features = self.width * 2**level
            x = layers.ConvTranspose(features, (2, 2), (2, 2), dtype=self.dtype)(x)
            x = block(jnp.concatenate([skips[level], x], axis=-1), features)
            if level < self.supervised_levels:
                channels = self.num_classes * self.patch_size**2
                y = layers.Conv(channels, (1, 1), dtype=jnp.float32)(x)
                logits.insert(0, _from_patches(y, self.patch_size))
        if self.supervised_levels > 1:
            return tuple(logits)
        return nn.sigmoid(logits[0]) if self.unit_range else logits[0]


def _block(conv: Any, norm: Any, residual: bool, x: jax.Array, features: int) -> jax.Array:
    """Two convolutions, to which a residual block adds its input."""
    y = nn.relu(norm(conv(features, (3, 3))(x)))
    y = norm(conv(features, (3, 3))(y))
    return nn.relu(y + norm(conv(features, (1, 1))(x)) if residual else y)


def _check_levels(supervised_levels: int, depth: int) -> None:
    if not 1 <= supervised_levels <= depth:
        raise errors.UserError(
            f"method.supervised_levels is {supervised_levels}: it must lie between 1 and the "
            f"depth, {depth}"
        )


def _to_patches(x: jax.Array, size: int) -> jax.Array:
    """[B, size * h, size * w, C] -> [B, h, w, size * size * C]."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // size, size, width // size, size, channels)
    return x.swapaxes(2, 3).reshape(batch, height // size, width // size, -1)


def _from_patches(x: jax.Array, size: int) -> jax.Array:
    """[B, h, w, size * size * C] -> [B, size * h, size * w, C]."""
    batch, height, width, _ = x.shape
    x = x.reshape(batch, height, width, size, size, -1)
    return x.swapaxes(2, 3).reshape(batch, height * size, width * size, -1)
