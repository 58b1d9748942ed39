"""Where in its frame each pixel lies."""

import jax.numpy as jnp
import numpy as np

from defect_jax.ops.coordinates import coordinates


def test_a_window_has_its_part_of_the_places_of_its_frame():
    whole = coordinates(jnp.array([[0, 0, 5, 9]]), (5, 9))[0]
    np.testing.assert_allclose(whole[:, 3, 0], [-1, -0.5, 0, 0.5, 1])
    np.testing.assert_allclose(whole[2, :, 1], np.linspace(-1, 1, 9))
    windows = coordinates(jnp.array([[1, 4, 5, 9], [2, 0, 5, 9]]), (3, 4))
    np.testing.assert_allclose(windows[0], whole[1:4, 4:8])
    np.testing.assert_allclose(windows[1], whole[2:5, 0:4])


def test_what_lies_beyond_the_frame_has_the_place_of_its_border():
    beyond = coordinates(jnp.array([[3, 7, 5, 9]]), (4, 5))[0]
    np.testing.assert_allclose(beyond[:, 0, 0], [0.5, 1, 1, 1])
    np.testing.assert_allclose(beyond[0, :, 1], [0.75, 1, 1, 1, 1])
