"""The U-Net: sizes, parameter counts, and that every pixel sees its own neighbourhood."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from defect_jax import errors
from defect_jax.models import unet


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


def test_a_pixel_changes_its_own_logits_most():
    """The skip at full resolution keeps places; a pixel out of reach changes nothing."""
    module = unet.UNet(width=4, depth=1, normalization="none")
    x = jax.random.normal(jax.random.key(0), (1, 32, 32, 1))
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, True))
    variables = jax.tree.map(lambda s: rng.uniform(0, 0.1, s.shape).astype(np.float32), shapes)
    apply = jax.jit(lambda x: module.apply(variables, x, True))
    change = np.abs(apply(x.at[0, 9, 20, 0].add(1.0)) - apply(x)).sum(-1)[0]
    assert np.unravel_index(change.argmax(), change.shape) == pytest.approx((9, 20), abs=2)
    # Four 3x3 convolutions at full and two at half resolution, rounded up by the pooling.
    assert change[9 + 10 :].max() == 0
    assert change[9 + 5].max() > 0


def test_a_residual_block_adds_its_input(variables_of):
    """With every 3x3 kernel at zero, only the 1x1 kernels of the sums bring the image through."""
    module = unet.UNet(width=4, depth=1, normalization="none", residual=True)
    x = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3))

    def cut(path, leaf):
        return np.zeros_like(leaf) if leaf.shape[:2] == (3, 3) else np.abs(leaf)

    variables = jax.tree_util.tree_map_with_path(cut, variables_of(module, x.shape))
    y = module.apply(variables, x, True)
    assert np.abs(y[0] - y[1]).max() > 1e-3


def test_supervised_levels_halve_and_the_first_is_the_result(count_of, variables_of):
    plain = unet.UNet(width=4, depth=3, num_classes=3)
    deep = unet.UNet(width=4, depth=3, num_classes=3, supervised_levels=3)
    shape = (1, 16, 24, 1)
    # Two more 1x1 layers, on 8 and 16 channels.
    assert count_of(deep, shape) - count_of(plain, shape) == 3 * (8 + 16) + 2 * 3
    outs = jax.eval_shape(
        lambda v: deep.apply(v, jnp.zeros(shape), False), variables_of(deep, shape)
    )
    assert [out.shape for out in outs] == [(1, 16, 24, 3), (1, 8, 12, 3), (1, 4, 6, 3)]


def test_patches_and_back():
    x = np.random.default_rng(0).normal(size=(2, 6, 9, 4)).astype(np.float32)
    patches = np.asarray(unet._to_patches(x, 3))
    np.testing.assert_array_equal(patches[1, 1, 2], x[1, 3:6, 6:9].ravel())
    np.testing.assert_array_equal(unet._from_patches(patches, 3), x)


def test_patches_give_logits_of_every_pixel(variables_of):
    """Without kernels the biases of the last layer are each place's logits within its patch."""
    module = unet.UNet(width=4, depth=1, num_classes=3, patch_size=2, supervised_levels=1)
    shape = (1, 8, 12, 1)
    biases = np.arange(12.0, dtype=np.float32)

    def only_biases(leaf):
        return biases if leaf.shape == biases.shape else np.zeros_like(leaf)

    variables = jax.tree.map(only_biases, variables_of(module, shape))
    y = np.asarray(module.apply(variables, jnp.ones(shape), False))
    assert y.shape == (1, 8, 12, 3)
    np.testing.assert_array_equal(y[0, 5, 10], biases[6:9])  # second row, first column
    with pytest.raises(errors.UserError, match="multiples of 4, found 10x12"):
        module.apply(variables, jnp.ones((1, 10, 12, 1)), False)


@pytest.mark.parametrize("levels", [0, 3])
def test_wrong_number_of_supervised_levels_is_named(levels, shapes_of):
    with pytest.raises(errors.UserError, match=rf"supervised_levels is {levels}: .* depth, 2"):
        shapes_of(unet.UNet(width=4, depth=2, supervised_levels=levels), (1, 8, 8, 3))


def test_wrong_size_is_named():
    module = unet.UNet(width=4, depth=4)
    with pytest.raises(errors.UserError, match="multiples of 16, found 24x32"):
        jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 24, 32, 3)), True))


def test_unknown_normalization_is_named():
    module = unet.UNet(normalization="layer")
    with pytest.raises(errors.UserError, match="unknown normalization 'layer'"):
        jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), True))
