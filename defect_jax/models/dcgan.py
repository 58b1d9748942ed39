"""The convolutional networks of DCGAN: an encoder, a decoder and a discriminator."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from defect_jax.models import layers

_HALVINGS = 5
_CELL = 2**_HALVINGS  # an image's side over that of the smallest map


def _shrink(
    x: jax.Array, width: int, norm: layers.Normalize, use_bias: bool, dtype: Any
) -> jax.Array:
    """Five 4x4 convolutions inside a compact module: [B, H, W, C] to [B, H/32, W/32, 16 width]."""
    layers.check_multiple("dcgan", x.shape, _CELL)
    for level in range(_HALVINGS):
        conv = layers.Conv(
            width * 2**level, (4, 4), (2, 2), padding=1, use_bias=use_bias, dtype=dtype
        )
        x = conv(x) if level == 0 else norm(conv(x))
        x = nn.leaky_relu(x, 0.2)
    return x


def _whole(x: jax.Array, features: int, use_bias: bool, dtype: Any) -> jax.Array:
    """A convolution over the whole image inside a compact module, to [B, 1, 1, features]."""
    _, height, width, _ = x.shape
    size = height, width
    return layers.Conv(features, size, padding="VALID", use_bias=use_bias, dtype=dtype)(x)


class Encoder(nn.Module):
    """Maps an image to a code: the discriminator of DCGAN with a longer result.

    No convolution has a bias; all but the first and the last are batch-normalised.

    Source: https://github.com/VectorInstitute/Computer_Vision_Project
    (image/Defect_Detection/model.py), which has the layers of Radford et al. 2016,
    https://arxiv.org/abs/1511.06434, and one more for 128x128 pixels.

    Attributes:
        width: channels after the first convolution; each of the next four doubles them.
        code_dim: length of the code.
        dtype: of the computation; parameters and the result are float32.
        axis_name: mapped axis to average batch statistics over; see `layers.normalization`.
    """

    width: int = 128
    code_dim: int = 100
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Encodes images.

        Args:
            x: [B, H, W, C] float32 in [0, 1]; H and W are multiples of 32.
            train: True normalises by the batch's statistics, False by the running averages.

        Returns:
            [B, 1, 1, code_dim] float32, unbounded.

        Raises:
            UserError: the size is not a multiple of 32.
        """
        norm = layers.normalization("batch", train, self.dtype, self.axis_name)
        x = _shrink(x, self.width, norm, use_bias=False, dtype=self.dtype)
        return _whole(x, self.code_dim, use_bias=False, dtype=self.dtype).astype(jnp.float32)


class Decoder(nn.Module):
    """Maps a code to an image: the generator of DCGAN, the encoder reversed.

    No convolution has a bias; all but the last are batch-normalised.

    Source: as `Encoder`.

    Attributes:
        image_size: (H, W) of the image, multiples of 32.
        channels: of the image.
        width: channels before the last convolution; each of the four before it halves them.
        dtype: of the computation; parameters and the result are float32.
        axis_name: mapped axis to average batch statistics over; see `layers.normalization`.
    """

    image_size: tuple[int, int] = (128, 128)
    channels: int = 3
    width: int = 128
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, code: jax.Array, train: bool) -> jax.Array:
        """Decodes.

        Args:
            code: [B, 1, 1, D] float32.
            train: True normalises by the batch's statistics, False by the running averages.

        Returns:
            [B, H, W, channels] float32 in [0, 1].

        Raises:
            UserError: the size is not a multiple of 32.
        """
        height, width = self.image_size
        layers.check_multiple("dcgan", (1, height, width, self.channels), _CELL)
        norm = layers.normalization("batch", train, self.dtype, self.axis_name)

        def up(x: jax.Array, features: int) -> jax.Array:
            layer = layers.ConvTranspose(features, (4, 4), (2, 2), use_bias=False, dtype=self.dtype)
            return layer(x)

        whole = layers.ConvTranspose(
            self.width * 2 ** (_HALVINGS - 1),
            (height // _CELL, width // _CELL),
            padding="VALID",
            use_bias=False,
            dtype=self.dtype,
        )
        x = nn.relu(norm(whole(code)))
        for level in reversed(range(_HALVINGS - 1)):
            x = nn.relu(norm(up(x, self.width * 2**level)))
        return nn.sigmoid(up(x, self.channels).astype(jnp.float32))


class Discriminator(nn.Module):
    """Tells images from generated ones, by layers as those of `Encoder`; also a critic.

    A critic with a gradient penalty must not be normalised by 'batch', for the penalty is on the
    gradient of each example alone (Gulrajani et al. 2017, https://arxiv.org/abs/1704.00028,
    section 4).

    Attributes:
        width: channels after the first convolution; each of the next four doubles them.
        normalization: 'batch', 'group' or 'none', of all convolutions but the first and the last;
            see `layers.normalization`. With 'none' all have biases, else no convolution has.
        dtype: of the computation; parameters and the results are float32.
        axis_name: mapped axis to average batch statistics over; see `layers.normalization`.
    """

    width: int = 128
    normalization: str = "batch"
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """Judges images.

        Args:
            x: [B, H, W, C] float32 in [0, 1]; H and W are multiples of 32.
            train: True normalises by the batch's statistics, False by the running averages.

        Returns:
            Logits [B] float32 and the activations before the last convolution
            [B, H/32, W/32, 16 * width] float32.

        Raises:
            UserError: the size is not a multiple of 32, or the normalisation is unknown.
        """
        norm = layers.normalization(self.normalization, train, self.dtype, self.axis_name)
        use_bias = self.normalization == "none"
        features = _shrink(x, self.width, norm, use_bias, self.dtype).astype(jnp.float32)
        return _whole(features, 1, use_bias, jnp.float32)[:, 0, 0, 0], features
