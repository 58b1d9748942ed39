"""The autoencoders: sizes, ranges, parameter counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from defect_jax import errors, models


def _count(name, shape):
    module = models.AUTOENCODERS[name]()
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros(shape), True))
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def test_ssim_net_parameter_count():
    """Encoder 3x3 kernels 9 * 97,376 = 876,384 and batch norms 2 * 960 = 1,920; decoder 3x3
    kernels 9 * 55,296 = 497,664, 4x4 kernels 16 * 44,032 = 704,512, 1x1 kernel 96 and batch norms
    2 * 771 = 1,542.
    """
    assert _count("ssim_net", (1, 256, 256, 3)) == 2_082_118


def test_bergmann_parameter_count():
    """Kernels 524,800 in the encoder (8x8 to the code: 204,800) and as many in the decoder; biases
    548 and 451.
    """
    assert _count("bergmann", (1, 128, 128, 3)) == 1_050_599


def _random_variables(module, shape):
    """Variables in (0, 0.1), positive as variances are, drawn without compiling initialisers."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros(shape), True))
    return jax.tree.map(lambda leaf: rng.uniform(0, 0.1, leaf.shape).astype(np.float32), shapes)


@pytest.mark.parametrize(
    ("name", "shape"), [("ssim_net", (2, 32, 64, 1)), ("bergmann", (1, 128, 128, 3))]
)
def test_rebuilds_images_of_the_same_shape_in_the_unit_range(name, shape):
    module = models.AUTOENCODERS[name](channels=shape[-1], code_dim=8, axis_name="batch")
    variables = _random_variables(module, shape)
    x = jax.random.uniform(jax.random.key(0), shape)
    y = jax.jit(lambda v: module.apply(v, x, False))(variables)
    assert y.shape == shape
    assert y.dtype == jnp.float32
    assert np.all((y >= 0) & (y <= 1))


@pytest.mark.parametrize("name", models.AUTOENCODERS)
def test_bfloat16_keeps_float32_parameters_and_result(name):
    module = models.AUTOENCODERS[name](dtype=jnp.bfloat16)
    x = jnp.zeros((1, 128, 128, 3))
    y, variables = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), x, True))
    assert {leaf.dtype for leaf in jax.tree.leaves((y, variables))} == {jnp.dtype("float32")}


def test_bergmann_sees_its_input_only_through_the_code():
    module = models.AUTOENCODERS["bergmann"](code_dim=7)
    shapes = jax.eval_shape(
        lambda: module.init(jax.random.key(0), jnp.zeros((1, 128, 128, 3)), True)
    )
    assert shapes["params"]["Conv_8"]["kernel"].shape == (8, 8, 32, 7)
    assert shapes["params"]["ConvTranspose_0"]["kernel"].shape == (8, 8, 7, 32)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("bergmann", (128, 256), "128x128 pixels, found 128x256"),
        ("ssim_net", (48, 64), "multiples of 32, found 48x64"),
    ],
)
def test_wrong_size_is_named(name, size, message):
    module = models.AUTOENCODERS[name]()
    with pytest.raises(errors.UserError, match=message):
        jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, *size, 3)), True))
