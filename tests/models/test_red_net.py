"""RED-Net: sizes, parameter counts, and the ways that its skips open."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from defect_jax import errors
from defect_jax.models import red_net


@pytest.mark.parametrize("skips", [2, 3, 4])
def test_parameter_count(skips, shapes_of):
    """Additive skips have no parameters. Encoder: 3x3 kernels 9 * 120,928 = 1,088,352, 1x1 kernels
    77,824, batch norms 2 * 1,504 = 3,008. Decoder: 3x3 kernels 9 * 77,824 = 700,416, 4x4 kernels
    16 * 56,320 = 901,120, 1x1 kernel 96, batch norms 2 * 1,027 = 2,054.
    """
    params = shapes_of(red_net.RedNet(skips=skips), (1, 64, 64, 3))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 2_772_870


def test_rebuilds_grey_images_of_the_same_shape_in_the_unit_range(variables_of):
    module = red_net.RedNet(channels=1, code_dim=8, axis_name="batch")
    x = jax.random.uniform(jax.random.key(0), (2, 64, 128, 1))
    variables = variables_of(module, x.shape)
    y = jax.jit(lambda v: module.apply(v, x, False))(variables)
    assert y.shape == x.shape
    assert y.dtype == jnp.float32
    assert np.all((y >= 0) & (y <= 1))


def _zero_norm(variables, name):
    """The variables, but a batch norm yields zero."""
    params = variables["params"]
    zeros = jax.tree.map(np.zeros_like, params[name])
    return {**variables, "params": {**params, name: zeros}}


# The batch norms of the code and of the first four up-samplings, by their place in the network.
_CODE, _UPS = "BatchNorm_11", ("BatchNorm_13", "BatchNorm_15", "BatchNorm_17", "BatchNorm_19")


def test_each_skip_opens_a_way_around_what_lies_below_it(variables_of):
    """Where batch norms cut the way through the code, images differ only through higher skips."""
    x = jax.random.uniform(jax.random.key(0), (2, 64, 64, 1))
    variables = variables_of(red_net.RedNet(channels=1, code_dim=8), x.shape)

    def comes_through(skips):
        module = red_net.RedNet(channels=1, code_dim=8, skips=skips)
        apply = jax.jit(lambda variables: module.apply(variables, x, False))
        results = [apply(_zero_norm(variables, cut)) for cut in (_CODE, *_UPS)]
        return [np.abs(first - second).max() > 1e-3 for first, second in results]

    # Cut are the code and the up-samplings to 1/32, 1/16, 1/8 and 1/4.
    assert comes_through(2) == [True, True, False, False, False]
    assert comes_through(3) == [True, True, True, False, False]
    assert comes_through(4) == [True, True, True, True, False]


def test_spread_equals_flax():
    """Values and gradients, where no two values of a window are the same."""
    x = jax.random.uniform(jax.random.key(0), (2, 5, 7, 3))
    cotangent = jax.random.normal(jax.random.key(1), x.shape)

    @functools.partial(jax.jit, static_argnums=0)
    def run(pool):
        y, pull = jax.vjp(pool, x)
        return y, pull(cotangent)

    actual = run(red_net.spread)
    expected = run(functools.partial(nn.max_pool, window_shape=(3, 3), padding="SAME"))
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_bfloat16_keeps_float32_parameters_and_result():
    module = red_net.RedNet(skips=4, dtype=jnp.bfloat16)
    x = jnp.zeros((1, 64, 64, 3))
    y, variables = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), x, True))
    assert {leaf.dtype for leaf in jax.tree.leaves((y, variables))} == {jnp.dtype("float32")}


def test_wrong_size_is_named(shapes_of):
    with pytest.raises(errors.UserError, match=r"red_net .* multiples of 64, found 96x128"):
        shapes_of(red_net.RedNet(), (1, 96, 128, 3))


@pytest.mark.parametrize("skips", [0, 5])
def test_wrong_number_of_skips_is_named(skips, shapes_of):
    with pytest.raises(errors.UserError, match=rf"method\.skips '{skips}': choose one of 2, 3, 4"):
        shapes_of(red_net.RedNet(skips=skips), (1, 64, 64, 3))
