"""The networks of SRGAN: one that restores detail, one that tells restored images from others."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from defect_jax.models import layers

_RESIDUAL_BLOCKS = 5
_UPSAMPLINGS = 2
_FACTOR = 2**_UPSAMPLINGS  # by how much the generator shrinks its input
# (features over width, stride) of the discriminator's convolutions.
_DISCRIMINATOR = ((1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (4, 2), (8, 1), (8, 2))


def pixel_shuffle(x: jax.Array, factor: int) -> jax.Array:
    """Rearranges channels to pixels.

    Pixel (i, j) and channel c of the result is pixel (i // r, j // r) and channel
    (i % r * r + j % r) * C + c of x, with r the factor: Shi et al. 2016,
    https://arxiv.org/abs/1609.05158, equation 4.

    Args:
        x: [B, H, W, factor**2 * C].
        factor: the up-sampling.

    Returns:
        [B, factor * H, factor * W, C].
    """
    batch, height, width, channels = x.shape
    features = channels // factor**2
    x = x.reshape(batch, height, width, factor, factor, features).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height * factor, width * factor, features)


class SRResNet(nn.Module):
    """Shrinks an image to a quarter of its height and width and restores it.

    A convolution has a bias unless batch normalisation follows; each PReLU has one learned slope.
    The result goes through a sigmoid, where the source has (1 + tanh) / 2: the sigmoid of twice
    the value.

    Source: Ledig et al. 2017, https://arxiv.org/abs/1609.04802, Figure 4, with five residual
    blocks and the shrinking inside as in
    https://github.com/shuaizzZ/DeeCamp-10Group-Unsupervised-Defect-Segmentation
    (model/networks/SRGAN, commit c20e39e).

    Attributes:
        channels: of the image.
        width: channels of the features.
        dtype: of the computation; parameters and the result are float32.
        axis_name: mapped axis to average batch statistics over; see `layers.normalization`.
    """

    channels: int = 3
    width: int = 64
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Restores images from their means over cells of 4x4 pixels.

        Args:
            x: [B, H, W, channels] float32 in [0, 1]; H and W are multiples of 4.
            train: True normalises by the batch's statistics, False by the running averages.

        Returns:
            [B, H, W, channels] float32 in [0, 1].

        Raises:
            UserError: the size is not a multiple of 4.
        """
        layers.check_multiple("srgan", x.shape, _FACTOR)
        norm = layers.normalization("batch", train, self.dtype, self.axis_name)

        def conv(x: jax.Array, features: int, size: int = 3, use_bias: bool = True) -> jax.Array:
            return layers.Conv(features, (size, size), use_bias=use_bias, dtype=self.dtype)(x)

        def prelu(x: jax.Array) -> jax.Array:
            return nn.PReLU(negative_slope_init=0.25)(x)

        def normalized(x: jax.Array) -> jax.Array:
            return norm(conv(x, self.width, use_bias=False))

        x = nn.avg_pool(x, (_FACTOR, _FACTOR), (_FACTOR, _FACTOR))
        x = first = prelu(conv(x, self.width, size=9))
        for _ in range(_RESIDUAL_BLOCKS):
            x = x + normalized(prelu(normalized(x)))
        x = first + normalized(x)
        for _ in range(_UPSAMPLINGS):
            x = prelu(pixel_shuffle(conv(x, 4 * self.width), 2))
        return nn.sigmoid(conv(x, self.channels, size=9).astype(jnp.float32))


class SRDiscriminator(nn.Module):
    """Tells images from restored ones.

    Source: as `SRResNet`; a global average in place of the paper's dense layer over all pixels, so
    any image size will do.

    Attributes:
        width: channels after the first convolution; the last have eight times as many.
        normalization: 'batch', 'group' or 'none', of all convolutions but the first; see
            `layers.normalization`. A convolution has a bias unless it is normalised.
        dtype: of the computation; parameters and the results are float32.
        axis_name: mapped axis to average batch statistics over; see `layers.normalization`.
    """

    width: int = 64
    normalization: str = "batch"
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """Judges images.

        Args:
            x: [B, H, W, C] float32 in [0, 1]; H and W are multiples of 16.
            train: True normalises by the batch's statistics, False by the running averages.

        Returns:
            Logits [B] float32 and the activations of the last convolution
            [B, H/16, W/16, 8 * width] float32.

        Raises:
            UserError: the size is not a multiple of 16, or the normalisation is unknown.
        """
        layers.check_multiple("srgan", x.shape, 16)
        norm = layers.normalization(self.normalization, train, self.dtype, self.axis_name)
        for index, (multiple, stride) in enumerate(_DISCRIMINATOR):
            conv = layers.Conv(
                multiple * self.width,
                (3, 3),
                (stride, stride),
                padding=1,
                use_bias=index == 0 or self.normalization == "none",
                dtype=self.dtype,
            )
            x = conv(x) if index == 0 else norm(conv(x))
            x = nn.leaky_relu(x, 0.2)
        features = x.astype(jnp.float32)
        x = nn.Dense(16 * self.width)(jnp.mean(features, axis=(1, 2)))
        return nn.Dense(1)(nn.leaky_relu(x, 0.2))[:, 0], features
