"""The three maps against XLA's own convolution and its automatic gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from defect_jax.ops import convolution

# kernel (kh, kw, C, D), strides, pads, (H, W)
CASES = {
    "3x3": ((3, 3, 4, 5), (1, 1), ((1, 1), (1, 1)), (7, 6)),
    "uneven_pads": ((3, 2, 4, 5), (1, 1), ((0, 2), (1, 0)), (7, 6)),
    "cropping_pads": ((3, 3, 2, 3), (1, 1), ((-1, 2), (1, -1)), (7, 6)),
    "4x4_s2": ((4, 4, 9, 5), (2, 2), ((1, 1), (1, 1)), (8, 6)),
    "4x4_s2_few_channels": ((4, 4, 3, 5), (2, 2), ((1, 1), (1, 1)), (8, 6)),
    "3x3_s2_with_rest": ((3, 3, 9, 2), (2, 2), ((1, 1), (1, 1)), (8, 7)),
    "2x2_s2": ((2, 2, 4, 5), (2, 2), ((0, 0), (0, 0)), (6, 7)),
    "5x3_s3x2": ((5, 3, 2, 3), (3, 2), ((2, 1), (0, 1)), (10, 7)),
    "1x1": ((1, 1, 4, 5), (1, 1), ((0, 0), (0, 0)), (4, 5)),
    "whole_input": ((4, 5, 3, 2), (1, 1), ((0, 0), (0, 0)), (4, 5)),
}


@pytest.fixture(params=["cpu", "other"])
def form(request, monkeypatch):
    """The form for XLA's CPU backend, and the one for all other backends."""
    monkeypatch.setattr(convolution, "_reformulate", lambda: request.param == "cpu")


def _draw(shape, seed):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("form")
def test_values_and_gradients_equal_xlas_own(case):
    kernel_shape, strides, pads, size = CASES[case]
    x, kernel = _draw((3, *size, kernel_shape[2]), 0), _draw(kernel_shape, 1)

    def plain(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, strides, pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    expected, expected_pull = jax.vjp(plain, x, kernel)
    y, pull = jax.vjp(lambda x, k: convolution.convolve(x, k, strides, pads), x, kernel)
    cotangent = _draw(y.shape, 2)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(pull(cotangent), expected_pull(cotangent), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("form")
def test_gradients_of_the_adjoint_are_the_other_two_maps(case):
    """<adjoint(y, k), x> = <y, convolve(x, k)>, so its gradients are known by `convolve`'s."""
    kernel_shape, strides, pads, size = CASES[case]
    x, kernel = _draw((3, *size, kernel_shape[2]), 0), _draw(kernel_shape, 1)
    convolved = convolution.convolve(x, kernel, strides, pads)
    y = _draw(convolved.shape, 2)
    back, pull = jax.vjp(lambda y, k: convolution.adjoint(y, k, strides, pads, size), y, kernel)
    np.testing.assert_allclose(np.vdot(back, x), np.vdot(y, convolved), rtol=1e-3, atol=1e-3)
    y_gradient, kernel_gradient = pull(x)
    np.testing.assert_allclose(y_gradient, convolved, rtol=1e-4, atol=1e-4)
    expected = convolution.kernel_gradient(x, y, kernel_shape[:2], strides, pads)
    np.testing.assert_allclose(kernel_gradient, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", ["3x3", "4x4_s2", "2x2_s2"])
def test_gradient_of_a_gradient(case):
    """What a gradient penalty needs: the kernel's gradient of the norm of the input's gradient."""
    kernel_shape, strides, pads, size = CASES[case]
    x, kernel = _draw((2, *size, kernel_shape[2]), 0), _draw(kernel_shape, 1)

    def penalty(convolve):
        def energy(x, kernel):
            return jnp.sum(jnp.tanh(convolve(x, kernel)))

        return jax.grad(lambda k: jnp.sum(jax.grad(energy)(x, k) ** 2))(kernel)

    def plain(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, strides, pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    ours = penalty(lambda x, k: convolution.convolve(x, k, strides, pads))
    theirs = penalty(plain)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3 * np.abs(theirs).max())
