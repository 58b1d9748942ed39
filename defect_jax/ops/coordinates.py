"""Where in its frame each pixel lies, as channels that a network can read."""

import jax
import jax.numpy as jnp


def coordinates(window: jax.Array, size: tuple[int, int]) -> jax.Array:
    """The place of each pixel of some windows in their frames.

    A convolution sees the same wherever it looks. With the place among its inputs it can learn
    that something lies only here or there: Liu et al. 2018, https://arxiv.org/abs/1807.03247.

    Args:
        window: [B, 4] int32, for each the first row and column in its frame, and the frame's height
            and width, in pixels.
        size: (H, W) of the windows.

    Returns:
        [B, H, W, 2] float32, row and column, from -1 for a frame's first to 1 for its last. What
        lies beyond the frame has the place of its border.
    """
    rows, columns = (
        2 * (window[:, axis, None] + jnp.arange(side)) / (window[:, 2 + axis, None] - 1) - 1
        for axis, side in enumerate(size)
    )
    place = jnp.stack(jnp.broadcast_arrays(rows[:, :, None], columns[:, None, :]), axis=-1)
    return jnp.clip(place, -1, 1)
