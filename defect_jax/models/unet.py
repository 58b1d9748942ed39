"""The U-Net that labels every pixel."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from defect_jax.models import layers


class UNet(nn.Module):
    """U-Net with normalisation and padded convolutions, so the map is as large as the image.

    Source: Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597, Figure 1.

    Attributes:
        width: channels at full resolution; each level down doubles them.
        depth: number of halvings of the resolution.
        num_classes: channels of the result.
        normalization: 'batch', 'group' or 'none'; see `layers.normalization`.
        unit_range: a sigmoid at the end, for a network that gives images.
        dtype: of the computation; parameters and the result are float32.
        axis_name: mapped axis to average batch statistics over; see `layers.normalization`.
    """

    width: int = 32
    depth: int = 4
    num_classes: int = 2
    normalization: str = "batch"
    unit_range: bool = False
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Labels pixels.

        Args:
            x: [B, H, W, C] float32; H and W are multiples of 2**depth.
            train: True normalises by the batch's statistics, False by the running averages.

        Returns:
            Logits [B, H, W, num_classes] float32, or their sigmoid where `unit_range` is set.

        Raises:
            UserError: the size is not a multiple of 2**depth, or the normalisation is unknown.
        """
        layers.check_multiple("unet", x.shape, 2**self.depth)
        norm = layers.normalization(self.normalization, train, self.dtype, self.axis_name)
        use_bias = self.normalization == "none"

        def block(x: jax.Array, features: int) -> jax.Array:
            for _ in range(2):
                x = layers.Conv(features, (3, 3), use_bias=use_bias, dtype=self.dtype)(x)
                x = nn.relu(norm(x))
            return x

        skips = []
        for level in range(self.depth):
            x = block(x, self.width * 2**level)
            skips.append(x)
            x = layers.max_pool(x)
        x = block(x, self.width * 2**self.depth)
        for level in reversed(range(self.depth)):
            features = self.width * 2**level
            x = layers.ConvTranspose(features, (2, 2), (2, 2), dtype=self.dtype)(x)
            x = block(jnp.concatenate([skips[level], x], axis=-1), features)
        x = layers.Conv(self.num_classes, (1, 1), dtype=jnp.float32)(x)
        return nn.sigmoid(x) if self.unit_range else x
