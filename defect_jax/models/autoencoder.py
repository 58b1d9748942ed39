"""Convolutional autoencoders that rebuild an image from a narrow code."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from defect_jax import errors
from defect_jax.models import layers

# (features, stride) of each stage of SSIMNet; a stride of 2 halves the resolution, or doubles it.
_SSIM_ENCODER = ((32, 2), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1), (128, 2), (128, 2))
_SSIM_DECODER = (
    *((128, 1), (128, 2), (128, 2), (128, 1), (64, 2)),
    *((64, 1), (32, 2), (32, 1), (32, 2), (32, 1)),
)
# (features, kernel size, stride) of each stage of BergmannNet before its code.
_BERGMANN = (
    *((32, 4, 2), (32, 4, 2), (32, 3, 1), (64, 4, 2)),
    *((64, 3, 1), (128, 4, 2), (64, 3, 1), (32, 3, 1)),
)


def _leaky(x: jax.Array) -> jax.Array:
    return nn.leaky_relu(x, 0.2)


class SSIMNet(nn.Module):
    """The SSIM_Net autoencoder of the DeeCamp group 10 defect-segmentation project.

    Every convolution has no bias and is followed by batch normalisation. 3x3 convolutions pad one
    zero on each side, also where they stride (flax's 'SAME' would pad only at the far side). The
    decoder mirrors the encoder, with transposed 4x4 convolutions where the encoder strides and one
    more 3x3 stage at full resolution before its last 1x1 convolution.

    Source: https://github.com/shuaizzZ/DeeCamp-10Group-Unsupervised-Defect-Segmentation
    (model/networks, commit c20e39e).

    Attributes:
        channels: of the image.
        code_dim: channels of the code, which has 1/32 of the image's height and width.
        dtype: of the computation; parameters and the result are float32.
        axis_name: mapped axis to average batch statistics over; see `layers.normalization`.
    """

    channels: int = 3
    code_dim: int = 256
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Rebuilds images.

        Args:
            x: [B, H, W, channels] float32 in [0, 1]; H and W are multiples of 32.
            train: True normalises by the batch's statistics, False by the running averages.

        Returns:
            [B, H, W, channels] float32 in [0, 1].

        Raises:
            UserError: the size is not a multiple of 32.
        """
        layers.check_multiple("ssim_net", x.shape, 32)
        norm = layers.normalization("batch", train, self.dtype, self.axis_name)

        def conv(x: jax.Array, features: int, stride: int = 1) -> jax.Array:
            layer = layers.Conv(
                features, (3, 3), (stride, stride), padding=1, use_bias=False, dtype=self.dtype
            )
            return norm(layer(x))

        def up(x: jax.Array, features: int) -> jax.Array:
            layer = layers.ConvTranspose(features, (4, 4), (2, 2), use_bias=False, dtype=self.dtype)
            return norm(layer(x))

        for features, stride in _SSIM_ENCODER:
            x = _leaky(conv(x, features, stride))
        x = nn.relu(conv(x, self.code_dim))
        for features, stride in _SSIM_DECODER:
            x = _leaky(up(x, features) if stride == 2 else conv(x, features))
        x = norm(layers.Conv(self.channels, (1, 1), use_bias=False, dtype=self.dtype)(x))
        return nn.sigmoid(x.astype(jnp.float32))


class BergmannNet(nn.Module):
    """The autoencoder of Bergmann et al. 2019 for images of 128x128 pixels.

    Source: "Improving Unsupervised Defect Segmentation by Applying Structural Similarity to
    Autoencoders", VISAPP 2019, https://arxiv.org/abs/1807.02011, Table 1; the decoder is the
    encoder reversed. The paper's output is linear; here a sigmoid follows, since images lie in
    [0, 1].

    Attributes:
        channels: of the image.
        code_dim: length of the code, a vector.
        dtype: of the computation; parameters and the result are float32.
        axis_name: unused, for there are no batch statistics; all autoencoders have it.
    """

    channels: int = 3
    code_dim: int = 100
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Rebuilds images.

        Args:
            x: [B, 128, 128, channels] float32 in [0, 1].
            train: makes no difference.

        Returns:
            [B, 128, 128, channels] float32 in [0, 1].

        Raises:
            UserError: the images are of another size.
        """
        height, width = x.shape[1:3]
        if (height, width) != (128, 128):
            raise errors.UserError(
                f"bergmann takes images of 128x128 pixels, found {height}x{width}: "
                "set the image size to 128"
            )
        for features, size, stride in _BERGMANN:
            x = _leaky(self._layer(layers.Conv, features, size, stride)(x))
        x = layers.Conv(self.code_dim, (8, 8), padding="VALID", dtype=self.dtype)(x)
        x = _leaky(
            layers.ConvTranspose(_BERGMANN[-1][0], (8, 8), padding="VALID", dtype=self.dtype)(x)
        )
        targets = [features for features, _, _ in _BERGMANN[:-1]]
        for features, (_, size, stride) in zip(targets[::-1], _BERGMANN[:0:-1], strict=True):
            x = _leaky(self._layer(layers.ConvTranspose, features, size, stride)(x))
        x = self._layer(layers.ConvTranspose, self.channels, *_BERGMANN[0][1:])(x)
        return nn.sigmoid(x.astype(jnp.float32))

    def _layer(self, kind: type, features: int, size: int, stride: int) -> nn.Module:
        return kind(features, (size, size), (stride, stride), dtype=self.dtype)
