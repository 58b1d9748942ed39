"""The networks of DCGAN: their layers written out, parameter counts, gradients of gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from defect_jax import errors
from defect_jax.models import dcgan
from tests.models.reference import Network, conv, up

FLOAT32 = {jnp.dtype("float32")}


def test_encoder_parameter_count(count_of):
    """Kernels 16 * (3 * 128 + 128 * 256 + 256 * 512 + 512 * 1024 + 1024 * 2048) = 44,570,624 and,
    to the code, 16 * 2048 * 100 = 3,276,800; batch norms 2 * (256 + 512 + 1024 + 2048) = 7,680.
    """
    assert count_of(dcgan.Encoder(), (1, 128, 128, 3)) == 47_855_104


def test_decoder_parameter_count(count_of):
    """Kernels as many as the encoder's; batch norms 2 * (2048 + 1024 + 512 + 256 + 128) = 7,936."""
    assert count_of(dcgan.Decoder(), (1, 1, 1, 100)) == 47_855_360


@pytest.mark.parametrize(
    ("normalization", "count"),
    [("batch", 44_611_072), ("group", 44_611_072), ("none", 44_607_361)],
)
def test_discriminator_parameter_count(normalization, count, count_of):
    """Kernels 44,570,624 as the encoder's and 16 * 2048 to the logit; norms 7,680, or else biases
    128 + 256 + 512 + 1024 + 2048 + 1 = 3,969.
    """
    module = dcgan.Discriminator(normalization=normalization)
    assert count_of(module, (1, 128, 128, 3)) == count


# Encoder and Decoder of https://github.com/VectorInstitute/Computer_Vision_Project
# (image/Defect_Detection/model.py). The discriminator is that encoder with a code of one number,
# after Radford et al. 2016, https://arxiv.org/abs/1511.06434: strided convolutions, LeakyReLU 0.2,
# no normalisation in the first and the last layer.
def halvings(norm):
    halve = functools.partial(conv, size=4, stride=2, pad=1, activation="leaky")
    return halve(2, norm="none"), *(halve(width, norm=norm) for width in (4, 8, 16, 32))


def whole(features):
    """Over images of 32x64 pixels, of which 1x2 are left; linear."""
    return conv(features, (1, 2), norm="none", activation="none")


_double = functools.partial(up, size=4, stride=2, pad=1)
DECODER = (
    *(up(32, (1, 2)), _double(16), _double(8), _double(4), _double(2)),
    _double(3, norm="none", activation="sigmoid"),
)


@pytest.mark.parametrize(
    ("module", "shape", "layers"),
    [
        (dcgan.Encoder(2, 7), (3, 32, 64, 1), (*halvings("batch"), whole(7))),
        (dcgan.Decoder((32, 64), 3, 2), (3, 1, 1, 7), DECODER),
    ],
    ids=["Encoder", "Decoder"],
)
def test_equals_its_layers_written_out(module, shape, layers, variables_of):
    variables = variables_of(module, shape)
    x = np.random.default_rng(0).normal(0, 10, shape).astype(np.float32)  # the decoder's fades
    network = Network(variables)
    actual = jax.jit(lambda v: module.apply(v, x, False))(variables)
    network.assert_gives(actual, network.run(x, *layers))


@pytest.mark.parametrize("normalization", ["batch", "group", "none"])
def test_discriminator_equals_its_layers_written_out(normalization, variables_of):
    module = dcgan.Discriminator(2, normalization)
    x = np.random.default_rng(0).uniform(size=(3, 32, 64, 1)).astype(np.float32)
    variables = variables_of(module, x.shape)
    logits, features = jax.jit(lambda v: module.apply(v, x, False))(variables)
    network = Network(variables)
    expected = network.run(x, *halvings(normalization))
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4)
    network.assert_gives(logits, network.run(expected, whole(1))[:, 0, 0, 0])


def test_gradient_of_the_norm_of_a_gradient(variables_of):
    """As a gradient penalty needs it. The gradient by the image is a product of the kernels, each
    half of the leaky ReLU, so its squared norm n is of degree 2 in every kernel, to which Euler's
    theorem gives <kernel, dn / dkernel> = 2 n; and no bias changes it.
    """
    module = dcgan.Discriminator(width=2, normalization="none")
    x = jax.random.uniform(jax.random.key(0), (2, 32, 32, 1))
    params = variables_of(module, x.shape)["params"]

    def squared_norm(params):
        slopes = jax.grad(lambda x: module.apply({"params": params}, x, True)[0].sum())(x)
        return jnp.sum(slopes**2)

    value, gradients = jax.jit(jax.value_and_grad(squared_norm))(params)
    assert value > 1e-6
    for name, layer in params.items():
        inner = np.sum(layer["kernel"] * gradients[name]["kernel"])
        assert inner == pytest.approx(2 * float(value), rel=1e-3)
        assert np.all(gradients[name]["bias"] == 0)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (dcgan.Encoder(width=2, dtype=jnp.bfloat16), (2, 32, 32, 3)),
        (dcgan.Decoder((32, 32), width=2, dtype=jnp.bfloat16), (2, 1, 1, 5)),
        (dcgan.Discriminator(width=2, dtype=jnp.bfloat16), (2, 32, 32, 3)),
    ],
    ids=["Encoder", "Decoder", "Discriminator"],
)
def test_bfloat16_keeps_float32_parameters_and_results(module, shape):
    x = jnp.zeros(shape)
    result = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), x, True))
    assert {leaf.dtype for leaf in jax.tree.leaves(result)} == FLOAT32


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (dcgan.Encoder(), (1, 48, 64, 3)),
        (dcgan.Decoder((48, 64)), (1, 1, 1, 5)),
        (dcgan.Discriminator(), (1, 48, 64, 3)),
    ],
    ids=["Encoder", "Decoder", "Discriminator"],
)
def test_wrong_size_is_named(module, shape, shapes_of):
    with pytest.raises(errors.UserError, match=r"dcgan .* multiples of 32, found 48x64"):
        shapes_of(module, shape)


def test_unknown_normalization_is_named(shapes_of):
    with pytest.raises(errors.UserError, match="unknown normalization 'layer'"):
        shapes_of(dcgan.Discriminator(normalization="layer"), (1, 32, 32, 3))
