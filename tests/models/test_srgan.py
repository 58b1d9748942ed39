"""The networks of SRGAN: their layers written out, the shuffling, parameter counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from defect_jax import errors
from defect_jax.models import srgan
from tests.models.reference import Network, conv


def test_generator_parameter_count(count_of):
    """9x9 convolutions 243 * 64 + 64 and 5,184 * 3 + 3; five blocks of 2 * 9 * 64**2 + 2 * 128;
    after them 9 * 64**2 + 128; two up-samplings of 9 * 64 * 256 + 256; 1 + 5 + 2 slopes:
    15,616 + 15,555 + 369,920 + 36,992 + 295,424 + 8.
    """
    assert count_of(srgan.SRResNet(), (1, 32, 32, 3)) == 733_515


@pytest.mark.parametrize(
    ("normalization", "count"), [("batch", 5_213_569), ("group", 5_213_569), ("none", 5_211_713)]
)
def test_discriminator_parameter_count(normalization, count, count_of):
    """3x3 kernels 9 * 520,384 = 4,683,456, the first's biases 64; norms of 1,856 channels 3,712,
    or else 1,856 biases; dense layers 512 * 1024 + 1024 and 1024 + 1.
    """
    assert count_of(srgan.SRDiscriminator(normalization=normalization), (1, 32, 32, 3)) == count


def test_slopes_start_at_a_quarter():
    module = srgan.SRResNet(width=2)

    @jax.jit
    def slopes():
        params = module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), True)["params"]
        return [params[f"PReLU_{i}"]["negative_slope"] for i in range(8)]

    np.testing.assert_array_equal(slopes(), np.full(8, 0.25))


@pytest.mark.parametrize("factor", [2, 3])
def test_pixel_shuffle_by_its_definition(factor):
    x = np.random.default_rng(0).normal(size=(2, 3, 4, factor**2 * 2))
    y = srgan.pixel_shuffle(jnp.asarray(x, jnp.float32), factor)
    expected = np.zeros((2, 3 * factor, 4 * factor, 2), np.float32)
    for i in range(3 * factor):
        for j in range(4 * factor):
            for c in range(2):
                place = (i % factor * factor + j % factor) * 2 + c
                expected[:, i, j, c] = x[:, i // factor, j // factor, place]
    np.testing.assert_array_equal(y, expected)


# Ledig et al. 2017, https://arxiv.org/abs/1609.04802, Figure 4, with five residual blocks, behind
# means of 4x4 pixels as in https://github.com/shuaizzZ/
# DeeCamp-10Group-Unsupervised-Defect-Segmentation (model/networks/SRGAN, commit c20e39e).
def _generator(network, x, width):
    def prelu(x):
        slope = network.take("PReLU")["negative_slope"]
        return np.where(x > 0, x, slope * x)

    linear = {"norm": "none", "activation": "none"}
    normal = conv(width, 3, 1, 1, activation="none")
    batch, height, side, channels = x.shape
    x = x.reshape(batch, height // 4, 4, side // 4, 4, channels).mean((2, 4))
    x = first = prelu(network.run(x, conv(width, 9, 1, 4, **linear)))
    for _ in range(5):
        x = x + network.run(prelu(network.run(x, normal)), normal)
    x = first + network.run(x, normal)
    for _ in range(2):
        x = network.run(x, conv(4 * width, 3, 1, 1, **linear))
        x = prelu(srgan.pixel_shuffle(x, 2))
    return network.run(x, conv(channels, 9, 1, 4, norm="none", activation="sigmoid"))


def test_generator_equals_its_layers_written_out(variables_of):
    module = srgan.SRResNet(channels=1, width=4)
    x = np.random.default_rng(0).uniform(size=(2, 16, 24, 1)).astype(np.float32)
    variables = variables_of(module, x.shape)
    actual = jax.jit(lambda v: module.apply(v, x, False))(variables)
    network = Network(variables)
    network.assert_gives(actual, _generator(network, x, 4))


@pytest.mark.parametrize("normalization", ["batch", "group", "none"])
def test_discriminator_equals_its_layers_written_out(normalization, variables_of):
    """Sources as above, but for a mean over the image, so that any size will do."""
    module = srgan.SRDiscriminator(2, normalization)
    x = np.random.default_rng(0).uniform(size=(3, 32, 48, 1)).astype(np.float32)
    variables = variables_of(module, (1, 16, 16, 1))
    logits, features = jax.jit(lambda v: module.apply(v, x, False))(variables)

    def layer(width, stride, norm=normalization):
        return conv(width, 3, stride, 1, norm, "leaky")

    network = Network(variables)
    expected = network.run(
        x,
        *(layer(2, 1, "none"), layer(2, 2), layer(4, 1), layer(4, 2)),
        *(layer(8, 1), layer(8, 2), layer(16, 1), layer(16, 2)),
    )
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4)
    first, second = network.take("Dense"), network.take("Dense")
    hidden = expected.mean((1, 2)) @ first["kernel"] + first["bias"]
    hidden = np.where(hidden > 0, hidden, 0.2 * hidden)
    network.assert_gives(logits, (hidden @ second["kernel"] + second["bias"])[:, 0])


@pytest.mark.parametrize("network", [srgan.SRResNet, srgan.SRDiscriminator])
def test_bfloat16_keeps_float32_parameters_and_results(network):
    module = network(width=2, dtype=jnp.bfloat16)
    x = jnp.zeros((2, 16, 16, 3))
    result = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), x, True))
    assert {leaf.dtype for leaf in jax.tree.leaves(result)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("network", "size", "message"),
    [
        (srgan.SRResNet, (16, 18), "multiples of 4, found 16x18"),
        (srgan.SRDiscriminator, (16, 24), "multiples of 16, found 16x24"),
    ],
)
def test_wrong_size_is_named(network, size, message, shapes_of):
    with pytest.raises(errors.UserError, match=message):
        shapes_of(network(), (1, *size, 3))


def test_unknown_normalization_is_named(shapes_of):
    with pytest.raises(errors.UserError, match="unknown normalization 'layer'"):
        shapes_of(srgan.SRDiscriminator(normalization="layer"), (1, 16, 16, 3))
