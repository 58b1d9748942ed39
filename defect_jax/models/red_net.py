"""RED-Net: an autoencoder whose decoder is helped by what its encoder saw."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from defect_jax import errors
from defect_jax.models import layers

# (features, kernel size, stride) of each stage before the last two, which have the code's width.
_ENCODER = (
    *((32, 3, 2), (64, 3, 2), (64, 1, 1), (64, 3, 2), (128, 1, 1)),
    *((128, 3, 2), (128, 1, 1), (128, 3, 2), (128, 1, 1), (128, 3, 2)),
)
# (features, stride, the encoder's stage that may be added to the input or None).
_DECODER = (
    *((128, 1, 10), (128, 2, None), (128, 1, 8), (128, 2, None), (128, 1, 6), (128, 2, None)),
    *((64, 1, 4), (64, 2, None), (64, 1, None), (32, 2, None), (32, 2, None)),
)
# The encoder's stages that the decoder sees for each number of skips.
_SKIPS = {2: (10, 8), 3: (10, 8, 6), 4: (10, 8, 6, 4)}


def spread(x: jax.Array) -> jax.Array:
    """Computes `nn.max_pool(x, (3, 3), padding="SAME")` of values that are not negative.

    Along H, then along W: on CPUs the gradient of the other form is many times slower.

    Args:
        x: [B, H, W, C], at least 0.

    Returns:
        [B, H, W, C].
    """
    # Zeros around are as good as minus infinity, for no value is lower.
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    x = jnp.maximum(jnp.maximum(x[:, :-2], x[:, 1:-1]), x[:, 2:])
    return jnp.maximum(jnp.maximum(x[:, :, :-2], x[:, :, 1:-1]), x[:, :, 2:])


class RedNet(nn.Module):
    """The RED-Net autoencoder of the DeeCamp group 10 defect-segmentation project.

    Every convolution has no bias and is followed by batch normalisation and, but for the last,
    ReLU. 3x3 convolutions pad one zero on each side. The decoder up-samples by transposed 4x4
    convolutions; to the inputs of its first 3x3 convolutions it adds the encoder's maps of the
    same size, after a 3x3 maximum.

    Source: https://github.com/shuaizzZ/DeeCamp-10Group-Unsupervised-Defect-Segmentation
    (model/networks/RED_Net, commit c20e39e), after Mao et al. 2016,
    https://arxiv.org/abs/1603.09056.

    Attributes:
        channels: of the image.
        code_dim: channels of the code, which has 1/64 of the image's height and width.
        skips: how many maps are added: 2 those of 1/64 and 1/32 of the image's height and width, 3
            that of 1/16 too, 4 that of 1/8 too.
        dtype: of the computation; parameters and the result are float32.
        axis_name: mapped axis to average batch statistics over; see `layers.normalization`.
    """

    channels: int = 3
    code_dim: int = 256
    skips: int = 2
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Rebuilds images.

        Args:
            x: [B, H, W, channels] float32 in [0, 1]; H and W are multiples of 64.
            train: True normalises by the batch's statistics, False by the running averages.

        Returns:
            [B, H, W, channels] float32 in [0, 1].

        Raises:
            UserError: the size is not a multiple of 64, or `skips` is not 2, 3 or 4.
        """
        errors.require(self.skips, _SKIPS, "method.skips")
        layers.check_multiple("red_net", x.shape, 64)
        norm = layers.normalization("batch", train, self.dtype, self.axis_name)
        plain = {"use_bias": False, "dtype": self.dtype}

        def conv(x: jax.Array, features: int, size: int = 3, stride: int = 1) -> jax.Array:
            pad = size // 2
            layer = layers.Conv(features, (size, size), (stride, stride), padding=pad, **plain)
            return norm(layer(x))

        def up(x: jax.Array, features: int) -> jax.Array:
            return norm(layers.ConvTranspose(features, (4, 4), (2, 2), **plain)(x))

        stages = []
        for features, size, stride in (*_ENCODER, (self.code_dim, 1, 1)):
            x = nn.relu(conv(x, features, size, stride))
            stages.append(x)
        x = nn.relu(conv(x, self.code_dim))
        for features, stride, stage in _DECODER:
            if stage in _SKIPS[self.skips]:
                x = x + spread(stages[stage])
            x = nn.relu(up(x, features) if stride == 2 else conv(x, features))
        return nn.sigmoid(conv(x, self.channels, size=1).astype(jnp.float32))
