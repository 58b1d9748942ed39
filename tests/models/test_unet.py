"""The U-Net: its layers written out, its parameter count, its patches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from defect_jax import errors
from defect_jax.models import unet
from tests.models.reference import Network, conv, max_pool, up


def test_parameter_count():
    """3x3 kernels 9 * 523,360 down and 9 * 261,120 up; 2x2 kernels 4 * 174,080 and their biases
    480; batch norms 2 * 2,944; the last layer 66.
    """
    module = unet.UNet(width=32, depth=4, num_classes=2)
    variables = jax.eval_shape(
        lambda: module.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), True)
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 7_763_074


@pytest.mark.parametrize("normalization", ["batch", "group", "none"])
def test_float32_logits_of_every_pixel(normalization):
    module = unet.UNet(
        width=4, depth=2, num_classes=3, normalization=normalization, dtype=jnp.bfloat16
    )
    x = jnp.zeros((2, 8, 12, 1))
    y, variables = jax.eval_shape(lambda: module.init_with_output(jax.random.key(1), x, True))
    assert y.shape == (2, 8, 12, 3)
    assert {leaf.dtype for leaf in jax.tree.leaves((y, variables))} == {jnp.dtype("float32")}
    assert ("batch_stats" in variables) == (normalization == "batch")


def test_patches_and_back():
    x = np.random.default_rng(0).normal(size=(2, 6, 9, 4)).astype(np.float32)
    patches = np.asarray(unet._to_patches(x, 3))
    np.testing.assert_array_equal(patches[1, 1, 2], x[1, 3:6, 6:9].ravel())
    np.testing.assert_array_equal(unet._from_patches(patches, 3), x)


# Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597, Figure 1, with normalisation before
# each ReLU; residual as in He et al. 2016, https://arxiv.org/abs/1512.03385, Figure 2.
def _by_hand(network, x, width, depth, norm, residual, outputs):
    """The logits of each level, the first level's first."""

    def block(x, features):
        small = (features, 3, 1, 1, norm)
        y = network.run(x, conv(*small), conv(*small, activation="none"))
        if residual:
            y = y + network.run(x, conv(features, 1, norm=norm, activation="none"))
        return np.maximum(y, 0)

    skips, logits = [], []
    for level in range(depth):
        x = block(x, width * 2**level)
        skips.append(x)
        x = max_pool(x)
    x = block(x, width * 2**depth)
    for level in reversed(range(depth)):
        features = width * 2**level
        x = network.run(x, up(features, 2, 2, norm="none", activation="none"))
        x = block(np.concatenate([skips[level], x], -1), features)
        if level in outputs:
            channels = outputs[level]
            logits.insert(0, network.run(x, conv(channels, 1, norm="none", activation="none")))
    return logits


@pytest.mark.parametrize("unit_range", [False, True])
def test_equals_its_layers_written_out(unit_range, variables_of):
    module = unet.UNet(width=4, depth=2, num_classes=3, unit_range=unit_range)
    x = np.random.default_rng(0).uniform(size=(2, 8, 12, 1)).astype(np.float32)
    variables = variables_of(module, x.shape)
    actual = jax.jit(lambda v: module.apply(v, x, False))(variables)
    network = Network(variables)
    (expected,) = _by_hand(network, x, 4, 2, "batch", False, {0: 3})
    network.assert_gives(actual, special.expit(expected) if unit_range else expected)


@pytest.mark.parametrize("normalization", ["group", "none"])
def test_residual_blocks_patches_and_supervised_levels_equal_theirs(normalization, variables_of):
    """Each 2x2 pixels go in as one, and come out so at the two levels that are supervised."""
    shared = {"residual": True, "supervised_levels": 2, "patch_size": 2}
    module = unet.UNet(width=4, depth=3, normalization=normalization, **shared)
    x = np.random.default_rng(0).uniform(size=(2, 16, 32, 1)).astype(np.float32)
    variables = variables_of(module, x.shape)
    actual = jax.jit(lambda v: module.apply(v, x, False))(variables)
    network = Network(variables)
    patches = unet._to_patches(x, 2)
    expected = _by_hand(network, patches, 4, 3, normalization, True, {0: 8, 1: 8})
    assert [y.shape for y in actual] == [(2, 16, 32, 2), (2, 8, 16, 2)]
    for logits, parts in zip(actual, expected, strict=True):
        network.assert_gives(logits, unet._from_patches(parts, 2))


@pytest.mark.parametrize("levels", [0, 3])
def test_wrong_number_of_supervised_levels_is_named(levels, shapes_of):
    with pytest.raises(errors.UserError, match=rf"supervised_levels is {levels}: .* depth, 2"):
        shapes_of(unet.UNet(width=4, depth=2, supervised_levels=levels), (1, 8, 8, 3))


@pytest.mark.parametrize(
    ("depth", "patch_size", "height", "message"),
    [(4, 1, 24, "multiples of 16, found 24x32"), (1, 2, 10, "multiples of 4, found 10x32")],
)
def test_wrong_size_is_named(depth, patch_size, height, message, shapes_of):
    module = unet.UNet(width=4, depth=depth, patch_size=patch_size)
    with pytest.raises(errors.UserError, match=message):
        shapes_of(module, (1, height, 32, 3))


def test_unknown_normalization_is_named():
    module = unet.UNet(normalization="layer")
    with pytest.raises(errors.UserError, match="unknown normalization 'layer'"):
        jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), True))
