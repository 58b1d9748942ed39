"""The autoencoders with a code: their layers written out, sizes, parameter counts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import mvtec_autoencoder
from defect_jax import errors, models
from tests.models.reference import Network, conv, up

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


_same = functools.partial(conv, size=3, pad=1, activation="leaky")
_double = functools.partial(up, size=4, stride=2, pad=1, activation="leaky")
_plain = {"norm": "none", "activation": "none"}
# model/networks/SSIM of https://github.com/shuaizzZ/DeeCamp-10Group-Unsupervised-Defect-Segmentation
# at commit c20e39e: convolution, batch normalisation, LeakyReLU 0.2; the code ends in ReLU, or is
# linear where it is a mean and a log-variance; the image ends in batch normalisation and a sigmoid.
SSIM_NET = (
    *(_same(32, stride=2), _same(32), _same(64, stride=2), _same(64)),
    *(_same(128, stride=2), _same(128), _same(128, stride=2), _same(128, stride=2)),
)
SSIM_NET_BACK = (
    *(_same(128), _double(128), _double(128), _same(128), _double(64), _same(64)),
    *(_double(32), _same(32), _double(32), _same(32), conv(3, 1, activation="sigmoid")),
)
# As there, with every convolution striding.
SSIM_NET_LITE = (
    *(_same(32, stride=2), _same(32, stride=2), _same(32, stride=2)),
    *(_same(64, stride=2), _same(64, stride=2), _same(64, stride=2)),
)
SSIM_NET_LITE_BACK = (
    *(_double(64), _double(64), _same(64), _double(64), _double(64), _same(32)),
    *(_double(32), _double(32), _same(32), conv(1, 1, activation="sigmoid")),
)
# Bergmann et al. 2019, https://arxiv.org/abs/1807.02011, Table 1: kernels, strides and padding;
# LeakyReLU 0.2 but for a linear code, no normalisation. The decoder is the table read upwards.
_leaky = {"norm": "none", "activation": "leaky"}
BERGMANN = (
    *(conv(32, 4, 2, 1, **_leaky), conv(32, 4, 2, 1, **_leaky), conv(32, 3, 1, 1, **_leaky)),
    *(conv(64, 4, 2, 1, **_leaky), conv(64, 3, 1, 1, **_leaky), conv(128, 4, 2, 1, **_leaky)),
    *(conv(64, 3, 1, 1, **_leaky), conv(32, 3, 1, 1, **_leaky)),
)
BERGMANN_BACK = (
    *(up(32, 8, 1, 0, **_leaky), up(64, 3, 1, 1, **_leaky), up(128, 3, 1, 1, **_leaky)),
    *(up(64, 4, 2, 1, **_leaky), up(64, 3, 1, 1, **_leaky), up(32, 4, 2, 1, **_leaky)),
    *(up(32, 3, 1, 1, **_leaky), up(32, 4, 2, 1, **_leaky)),
    up(1, 4, 2, 1, norm="none", activation="sigmoid"),
)


@pytest.mark.parametrize(
    ("name", "variational", "shape", "encoder", "decoder"),
    [
        ("ssim_net", False, (2, 32, 64, 3), (*SSIM_NET, conv(5, 3, 1, 1)), SSIM_NET_BACK),
        ("ssim_net", True, (2, 32, 32, 3), (*SSIM_NET, conv(10, 3, 1, 1, **_plain)), SSIM_NET_BACK),
        (
            *("ssim_net_lite", False, (2, 64, 128, 1)),
            *((*SSIM_NET_LITE, conv(5, 3, 1, 1)), SSIM_NET_LITE_BACK),
        ),
        (
            *("bergmann", False, (2, 128, 128, 1)),
            *((*BERGMANN, conv(5, 8, **_plain)), BERGMANN_BACK),
        ),
    ],
)
def test_equals_its_layers_written_out(name, variational, shape, encoder, decoder, variables_of):
    """A variational one rebuilds from the mean, the first half of what the encoder gives."""
    module = make(name, variational, channels=shape[-1], code_dim=5)
    variables = variables_of(module, shape)
    x = np.random.default_rng(0).uniform(size=shape).astype(np.float32)

    @jax.jit
    def both(variables):
        code = module.apply(variables, x, False, method="encode")
        return code, module.apply(variables, x, False)

    code, rebuilt = both(variables)
    network = Network(variables, "encoder")
    expected = network.run(x, *encoder)
    network.assert_gives(code, expected)
    network = Network(variables, "decoder")
    network.assert_gives(rebuilt, network.run(expected[..., :5], *decoder))


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
