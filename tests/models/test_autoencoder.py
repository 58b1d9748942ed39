"""The autoencoders with a code: sizes, ranges, parameter counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import mvtec_autoencoder
from defect_jax import errors, models

CODE_DIMS = {"ssim_net": 256, "ssim_net_lite": 128, "bergmann": 100, "dcgan": 100}


def make(name, variational=False, channels=3, code_dim=None, size=128, dtype="float32"):
    config = mvtec_autoencoder.get_config()
    config.dtype = dtype
    config.data.update(channels=channels, image_size=(size, size))
    config.method.update(model=name, code_dim=code_dim or CODE_DIMS[name])
    config.method.width = 8
    return models.make_coder(config, variational)


def test_ssim_net_parameter_count(count_of):
    """Encoder 3x3 kernels 9 * 97,376 = 876,384 and batch norms 2 * 960 = 1,920; decoder 3x3
    kernels 9 * 55,296 = 497,664, 4x4 kernels 16 * 44,032 = 704,512, 1x1 kernel 96 and batch norms
    2 * 771 = 1,542.
    """
    assert count_of(make("ssim_net"), (1, 256, 256, 3)) == 2_082_118


def test_ssim_net_lite_parameter_count(count_of):
    """On grey images. Encoder 3x3 kernels 9 * (32 + 2 * 1024 + 2048 + 2 * 4096 + 8192) = 184,608
    and batch norms 2 * 416 = 832; decoder 4x4 kernels 16 * (8192 + 3 * 4096 + 2 * 1024) = 360,448,
    3x3 kernels 9 * (4096 + 2048 + 1024) = 64,512, 1x1 kernel 32 and batch norms 2 * 449 = 898.
    """
    assert count_of(make("ssim_net_lite", channels=1), (1, 256, 256, 1)) == 611_330


def test_bergmann_parameter_count(count_of):
    """Kernels 524,800 in the encoder (8x8 to the code: 204,800) and as many in the decoder; biases
    548 and 451.
    """
    assert count_of(make("bergmann"), (1, 128, 128, 3)) == 1_050_599


@pytest.mark.parametrize(
    ("name", "added"),
    [("ssim_net", 9 * 128 * 256 - 2 * 256), ("bergmann", 64 * 32 * 100 + 100)],
)
def test_a_variational_encoder_has_twice_the_code_and_nothing_else(name, added, count_of):
    """Mean and log-variance; SSIM_Net's code loses the batch norm, as it has to be linear."""
    shape = (1, 128, 128, 3)
    plain, variational = count_of(make(name), shape), count_of(make(name, variational=True), shape)
    assert variational - plain == added


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("ssim_net", (2, 32, 32, 1)),
        ("ssim_net_lite", (1, 64, 64, 1)),
        ("bergmann", (1, 128, 128, 3)),
    ],
)
def test_rebuilds_images_of_the_same_shape_in_the_unit_range(name, shape, variables_of):
    module = make(name, channels=shape[-1], code_dim=8, size=shape[1])
    variables = variables_of(module, shape)
    x = jax.random.uniform(jax.random.key(0), shape)
    y = jax.jit(lambda v: module.apply(v, x, False))(variables)
    assert y.shape == shape
    assert y.dtype == jnp.float32
    assert np.all((y >= 0) & (y <= 1))


@pytest.mark.parametrize("name", models.CODERS)
@pytest.mark.parametrize("variational", [False, True])
def test_bfloat16_keeps_float32_parameters_and_result(name, variational):
    module = make(name, variational, dtype="bfloat16")
    x = jnp.zeros((1, 128, 128, 3))
    y, variables = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), x, False))
    code = jax.eval_shape(lambda v: module.apply(v, x, False, method="encode"), variables)
    assert {leaf.dtype for leaf in jax.tree.leaves((y, code, variables))} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", models.CODERS)
def test_the_image_is_rebuilt_from_the_code_alone(name, shapes_of):
    module = make(name, code_dim=7)
    x = jnp.zeros((1, 128, 128, 3))
    variables = shapes_of(module, x.shape)
    code = jax.eval_shape(lambda v: module.apply(v, x, False, method="encode"), variables)
    assert code.shape[-1] == 7
    assert code.size < x.size / 50
    y = jax.eval_shape(lambda v, c: module.apply(v, c, False, method="decode"), variables, code)
    assert y.shape == x.shape


def test_a_variational_one_rebuilds_from_the_mean_code(variables_of):
    module = make("ssim_net", variational=True, code_dim=4, size=32)
    x = jax.random.uniform(jax.random.key(0), (1, 32, 32, 3))
    variables = variables_of(module, x.shape)

    @jax.jit
    def both(variables):
        moments = module.apply(variables, x, False, method="encode")
        decoded = module.apply(variables, moments[..., :4], False, method="decode")
        return module.apply(variables, x, False), decoded

    np.testing.assert_array_equal(*both(variables))


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("bergmann", (128, 256), "128x128 pixels, found 128x256"),
        ("ssim_net", (48, 64), "multiples of 32, found 48x64"),
        ("ssim_net_lite", (32, 64), "multiples of 64, found 32x64"),
        ("dcgan", (16, 32), "multiples of 32, found 16x32"),
    ],
)
def test_a_size_that_is_too_small_or_odd_is_named(name, size, message, shapes_of):
    with pytest.raises(errors.UserError, match=message):
        shapes_of(make(name), (1, *size, 3))
