"""Convolutional autoencoders that rebuild an image from a narrow code."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from defect_jax import errors
from defect_jax.models import layers

Stages = tuple[tuple[int, int], ...]

# (features, stride) of each stage; a stride of 2 halves the resolution, or doubles it.
SSIM_ENCODER: Stages = (
    *((32, 2), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1), (128, 2), (128, 2)),
)
SSIM_DECODER: Stages = (
    *((128, 1), (128, 2), (128, 2), (128, 1), (64, 2)),
    *((64, 1), (32, 2), (32, 1), (32, 2), (32, 1)),
)
SSIM_LITE_ENCODER: Stages = ((32, 2), (32, 2), (32, 2), (64, 2), (64, 2), (64, 2))
SSIM_LITE_DECODER: Stages = (
    *((64, 2), (64, 2), (64, 1), (64, 2), (64, 2), (32, 1), (32, 2), (32, 2), (32, 1)),
)
# (features, kernel size, stride) of each stage of the Bergmann encoder before its code.
_BERGMANN = (
    *((32, 4, 2), (32, 4, 2), (32, 3, 1), (64, 4, 2)),
    *((64, 3, 1), (128, 4, 2), (64, 3, 1), (32, 3, 1)),
)


def _leaky(x: jax.Array) -> jax.Array:
    return nn.leaky_relu(x, 0.2)


class Autoencoder(nn.Module):
    """An encoder and a decoder, together and each by itself.

    Attributes:
        encoder: (x [B, H, W, C], train) -> code [B, h, w, D].
        decoder: (code [B, h, w, D], train) -> [B, H, W, C] float32 in [0, 1].
        variational: the encoder gives [B, h, w, 2 D], the mean and the log-variance of a code.
    """

    encoder: nn.Module
    decoder: nn.Module
    variational: bool = False

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Rebuilds images [B, H, W, C] in [0, 1], float32, a variational one from the mean code."""
        code = self.encode(x, train)
        if self.variational:
            code = jnp.split(code, 2, axis=-1)[0]
        return self.decode(code, train)

    def encode(self, x: jax.Array, train: bool) -> jax.Array:
        """What the encoder gives, float32, for images [B, H, W, C] in [0, 1]."""
        return self.encoder(x, train)

    def decode(self, code: jax.Array, train: bool) -> jax.Array:
        """The images [B, H, W, C] in [0, 1] of codes [B, h, w, D]."""
        return self.decoder(code, train)


class ReEncoding(nn.Module):
    """An autoencoder and a second encoder, which encodes what the autoencoder rebuilt.

    Source: Akcay et al. 2018, "GANomaly", https://arxiv.org/abs/1805.06725, Figure 2.

    Attributes:
        autoencoder: what rebuilds.
        re_encoder: an encoder like the autoencoder's, with parameters of its own.
    """

    autoencoder: Autoencoder
    re_encoder: nn.Module

    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns rebuilt images [B, H, W, C], the code of x and that of the rebuilt images."""
        code = self.autoencoder.encode(x, train)
        rebuilt = self.autoencoder.decode(code, train)
        return rebuilt, code, self.re_encoder(rebuilt, train)


class SSIMEncoder(nn.Module):
    """The encoder of SSIM_Net and SSIM_Net_lite of DeeCamp's group 10.

    Every convolution has no bias and is followed by batch normalisation. 3x3 convolutions pad one
    zero on each side, also where they stride (flax's 'SAME' would pad only at the far side).

    Source: https://github.com/shuaizzZ/DeeCamp-10Group-Unsupervised-Defect-Segmentation
    (model/networks, commit c20e39e).

    Attributes:
        stages: (features, stride) of each convolution before the code.
        code_dim: channels of the code.
        linear_code: the code is the plain result of its convolution, as mean and log-variance
            have to be; else batch normalisation and ReLU follow.
        dtype: of the computation; parameters and the result are float32.
        axis_name: mapped axis to average batch statistics over; see `layers.normalization`.
    """

    stages: Stages = SSIM_ENCODER
    code_dim: int = 256
    linear_code: bool = False
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Encodes images.

        Args:
            x: [B, H, W, C] float32 in [0, 1]; H and W are multiples of the product of all strides.
            train: True normalises by the batch's statistics, False by the running averages.

        Returns:
            [B, h, w, code_dim] float32.

        Raises:
            UserError: the size is no such multiple.
        """
        halvings = sum(stride == 2 for _, stride in self.stages)
        layers.check_multiple("an SSIM network", x.shape, 2**halvings)
        norm = layers.normalization("batch", train, self.dtype, self.axis_name)

        def conv(x: jax.Array, features: int, stride: int = 1) -> jax.Array:
            return layers.Conv(
                features, (3, 3), (stride, stride), padding=1, use_bias=False, dtype=self.dtype
            )(x)

        for features, stride in self.stages:
            x = _leaky(norm(conv(x, features, stride)))
        x = conv(x, self.code_dim)
        return (x if self.linear_code else nn.relu(norm(x))).astype(jnp.float32)


class SSIMDecoder(nn.Module):
    """The decoder of SSIM_Net and SSIM_Net_lite.

    Transposed 4x4 convolutions double the resolution where the encoder halves it; 3x3 convolutions
    lie between them and one more at full resolution before the last 1x1 convolution. The result
    goes through a sigmoid; SSIM_Net_lite's source has (1 + tanh) / 2, the sigmoid of twice the
    value.

    Attributes:
        stages: (features, stride) of each convolution, transposed where the stride is 2.
        channels: of the image.
        dtype: of the computation; parameters and the result are float32.
        axis_name: see `SSIMEncoder`.
    """

    stages: Stages = SSIM_DECODER
    channels: int = 3
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps codes [B, h, w, D] to images [B, H, W, channels] float32 in [0, 1]."""
        norm = layers.normalization("batch", train, self.dtype, self.axis_name)
        for features, stride in self.stages:
            layer: nn.Module
            if stride == 2:
                layer = layers.ConvTranspose(
                    features, (4, 4), (2, 2), use_bias=False, dtype=self.dtype
                )
            else:
                layer = layers.Conv(features, (3, 3), use_bias=False, dtype=self.dtype)
            x = _leaky(norm(layer(x)))
        x = norm(layers.Conv(self.channels, (1, 1), use_bias=False, dtype=self.dtype)(x))
        return nn.sigmoid(x.astype(jnp.float32))


class BergmannEncoder(nn.Module):
    """The encoder of Bergmann et al. 2019 for images of 128x128 pixels.

    Source: "Improving Unsupervised Defect Segmentation by Applying Structural Similarity to
    Autoencoders", VISAPP 2019, https://arxiv.org/abs/1807.02011, Table 1.

    Attributes:
        code_dim: length of the code, a vector.
        dtype: of the computation; parameters and the result are float32.
    """

    code_dim: int = 100
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps images [B, 128, 128, C] in [0, 1] to codes [B, 1, 1, code_dim] float32.

        `train` makes no difference.

        Raises:
            UserError: the images are of another size.
        """
        height, width = x.shape[1:3]
        if (height, width) != (128, 128):
            raise errors.UserError(
                f"bergmann takes images of 128x128 pixels, found {height}x{width}: "
                "set data.image_size"
            )
        for features, size, stride in _BERGMANN:
            x = _leaky(layers.Conv(features, (size, size), (stride, stride), dtype=self.dtype)(x))
        x = layers.Conv(self.code_dim, (8, 8), padding="VALID", dtype=self.dtype)(x)
        return x.astype(jnp.float32)


class BergmannDecoder(nn.Module):
    """The encoder of `BergmannEncoder` reversed.

    The paper's output is linear; here a sigmoid follows, since images lie in [0, 1].

    Attributes:
        channels: of the image.
        dtype: of the computation; parameters and the result are float32.
    """

    channels: int = 3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps codes [B, 1, 1, D] to images [B, 128, 128, channels] float32 in [0, 1].

        `train` makes no difference.
        """

        def up(x: jax.Array, features: int, size: int, stride: int) -> jax.Array:
            return layers.ConvTranspose(features, (size, size), (stride, stride), dtype=self.dtype)(
                x
            )

        x = _leaky(
            layers.ConvTranspose(_BERGMANN[-1][0], (8, 8), padding="VALID", dtype=self.dtype)(x)
        )
        targets = [features for features, _, _ in _BERGMANN[:-1]]
        for features, (_, size, stride) in zip(targets[::-1], _BERGMANN[:0:-1], strict=True):
            x = _leaky(up(x, features, size, stride))
        x = up(x, self.channels, *_BERGMANN[0][1:])
        return nn.sigmoid(x.astype(jnp.float32))
