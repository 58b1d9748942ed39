"""RED-Net: its layers and skips written out, and its parameter count."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from defect_jax import errors
from defect_jax.models import red_net
from tests.models.reference import Network, conv, neighbours_max, up


def test_parameter_count(count_of):
    """Additive skips have no parameters. Encoder: 3x3 kernels 9 * 120,928 = 1,088,352, 1x1 kernels
    77,824, batch norms 2 * 1,504 = 3,008. Decoder: 3x3 kernels 9 * 77,824 = 700,416, 4x4 kernels
    16 * 56,320 = 901,120, 1x1 kernel 96, batch norms 2 * 1,027 = 2,054.
    """
    assert count_of(red_net.RedNet(), (1, 64, 64, 3)) == 2_772_870


# model/networks/RED_Net of https://github.com/shuaizzZ/
# DeeCamp-10Group-Unsupervised-Defect-Segmentation at commit c20e39e: convolution, batch
# normalisation, ReLU; the numbers are those of its layers, c4 to c10.
def _by_hand(network, x, skips, code_dim, channels):
    small = functools.partial(conv, size=3, pad=1)
    halve = functools.partial(small, stride=2)
    point = functools.partial(conv, size=1)
    double = functools.partial(up, size=4, stride=2, pad=1)
    c4 = network.run(x, halve(32), halve(64), point(64), halve(64), point(128))
    c6 = network.run(c4, halve(128), point(128))
    c8 = network.run(c6, halve(128), point(128))
    c10 = network.run(c8, halve(128), point(code_dim))
    x = network.run(c10, small(code_dim)) + neighbours_max(c10)
    x = network.run(x, small(128), double(128)) + neighbours_max(c8)
    x = network.run(x, small(128), double(128))
    x = network.run(x + neighbours_max(c6) if skips >= 3 else x, small(128), double(128))
    x = network.run(x + neighbours_max(c4) if skips == 4 else x, small(64), double(64))
    x = network.run(x, small(64), double(32), double(32))
    return network.run(x, point(channels, activation="sigmoid"))


@pytest.mark.parametrize("skips", [2, 3, 4])
def test_equals_its_layers_written_out(skips, variables_of):
    module = red_net.RedNet(channels=1, code_dim=8, skips=skips)
    x = np.random.default_rng(0).uniform(size=(2, 64, 128, 1)).astype(np.float32)
    variables = variables_of(module, x.shape)
    actual = jax.jit(lambda v: module.apply(v, x, False))(variables)
    network = Network(variables)
    network.assert_gives(actual, _by_hand(network, x, skips, 8, 1))


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
