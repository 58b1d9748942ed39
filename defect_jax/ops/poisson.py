"""Poisson image editing: a patch set into a background without a seam."""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def blend(background: jax.Array, patch: jax.Array) -> jax.Array:
    """Continues the background into a rectangle with the details of a patch.

    Pérez et al. 2003, "Poisson Image Editing", ACM Transactions on Graphics 22(3), eq. 4 and 7:
    the outermost ring of pixels is the background's, and the Laplacian (of the 5-point stencil) of
    every inner pixel is the patch's. The solution is exact, by the type-I sine transform, which
    diagonalises the Laplacian with a given border. Nothing is clipped.

    Args:
        background: [h, w, C] float32.
        patch: [h, w, C] float32.

    Returns:
        [h, w, C].
    """
    # The result is the patch plus what has no Laplacian and is their difference on the ring. This
    # part alone is solved for: small where the two are alike, and zero where they are the same.
    ring = (background - patch).at[1:-1, 1:-1].set(0.0)
    charge = ring[:-2, 1:-1] + ring[2:, 1:-1] + ring[1:-1, :-2] + ring[1:-1, 2:]
    return background.at[1:-1, 1:-1].set(patch[1:-1, 1:-1] + _solve(charge))


def _solve(charge: jax.Array) -> jax.Array:
    """The field [m, n, C] with zeros around it whose negative Laplacian is `charge` [m, n, C]."""
    rows, columns = (_sines(size) for size in charge.shape[:2])
    # Full float32 also where a backend would round factors to fewer bits.
    transform = functools.partial(jnp.einsum, "ij,jkc,kl->ilc", precision=jax.lax.Precision.HIGHEST)
    eigenvalues = np.add.outer(*(_eigenvalues(size) for size in charge.shape[:2]))
    return transform(rows, transform(rows, charge, columns) / eigenvalues[..., None], columns)


@functools.lru_cache(maxsize=64)
def _sines(size: int) -> np.ndarray:
    """The type-I sine transform [size, size] float32: orthonormal, symmetric, its own inverse."""
    index = np.arange(1, size + 1)
    sines = np.sqrt(2 / (size + 1)) * np.sin(np.pi * np.outer(index, index) / (size + 1))
    sines = sines.astype(np.float32)
    sines.flags.writeable = False
    return sines


def _eigenvalues(size: int) -> np.ndarray:
    """Of the negative second difference of `size` values between two zeros: [size] float32."""
    # Not 2 - 2 cos, which would cancel where it matters most.
    return (4 * np.sin(np.pi * np.arange(1, size + 1) / (2 * size + 2)) ** 2).astype(np.float32)
