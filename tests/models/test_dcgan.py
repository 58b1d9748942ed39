"""The networks of DCGAN: parameter counts, sizes, ranges, and what each example depends on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from defect_jax import errors
from defect_jax.models import dcgan

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


def test_the_whole_image_becomes_one_code_and_back(variables_of):
    """Sizes that are not square; a grey image."""
    encoder = dcgan.Encoder(width=2, code_dim=5, axis_name="batch")
    decoder = dcgan.Decoder((64, 96), channels=1, width=2, axis_name="batch")
    x = jax.random.uniform(jax.random.key(0), (2, 64, 96, 1))
    encode = variables_of(encoder, x.shape)
    decode = variables_of(decoder, (2, 1, 1, 5))
    code = jax.jit(lambda x: encoder.apply(encode, x, False))(x)
    y = jax.jit(lambda code: decoder.apply(decode, code, False))(code)
    assert encode["params"]["Conv_5"]["kernel"].shape == (2, 3, 32, 5)
    assert decode["params"]["ConvTranspose_0"]["kernel"].shape == (2, 3, 5, 32)
    assert code.shape == (2, 1, 1, 5)
    assert y.shape == x.shape
    assert np.all((y >= 0) & (y <= 1))
    assert np.std(y[0] - y[1]) > 0


def test_encoder_by_its_definition(variables_of):
    """The first convolution is not normalised, the code is linear, negative slopes are 0.2."""
    module = dcgan.Encoder(width=2, code_dim=3)
    x = jax.random.uniform(jax.random.key(0), (2, 32, 64, 3))
    variables = variables_of(module, x.shape)

    def by_definition(x):
        for i in range(6):
            kernel, window = variables["params"][f"Conv_{i}"]["kernel"], (2, 2)
            pads = [(1, 1), (1, 1)]
            if i == 5:
                window, pads = (1, 1), [(0, 0), (0, 0)]
            order = ("NHWC", "HWIO", "NHWC")
            x = lax.conv_general_dilated(x, kernel, window, pads, dimension_numbers=order)
            if 0 < i < 5:
                affine = variables["params"][f"BatchNorm_{i - 1}"]
                stats = variables["batch_stats"][f"BatchNorm_{i - 1}"]
                x = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
                x = x * affine["scale"] + affine["bias"]
            if i < 5:
                x = jnp.where(x > 0, x, 0.2 * x)
        return x

    code, expected = jax.jit(lambda x: (module.apply(variables, x, False), by_definition(x)))(x)
    np.testing.assert_allclose(code, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("normalization", ["batch", "group", "none"])
def test_logits_of_an_example_depend_on_the_others_only_with_batch_norm(
    normalization, variables_of
):
    module = dcgan.Discriminator(width=4, normalization=normalization)
    x = jax.random.uniform(jax.random.key(0), (2, 32, 64, 3))
    variables = variables_of(module, x.shape)

    @jax.jit
    def apply(x):
        return module.apply(variables, x, True, mutable=["batch_stats"])[0]

    logits, features = apply(x)
    changed, _ = apply(x.at[1].set(0.5))
    assert logits.shape == (2,)
    assert features.shape == (2, 1, 2, 64)
    assert not np.isclose(logits[1], changed[1], rtol=1e-3)
    assert np.isclose(logits[0], changed[0], rtol=1e-5) == (normalization != "batch")


def test_logit_is_a_linear_map_of_the_features(variables_of):
    module = dcgan.Discriminator(width=2, normalization="none")
    x = jax.random.uniform(jax.random.key(0), (2, 64, 32, 3))
    variables = variables_of(module, x.shape)
    logits, features = jax.jit(lambda x: module.apply(variables, x, True))(x)
    last = variables["params"]["Conv_5"]
    expected = np.einsum("bhwc,hwc->b", features, last["kernel"][..., 0]) + last["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-4)
    assert np.any(np.asarray(features) < 0)  # leaky


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
