"""The networks of SRGAN: parameter counts, the shrinking, the shuffling, the long skip."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from defect_jax import errors
from defect_jax.models import srgan


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


def test_generator_sees_only_the_means_of_4x4_cells(variables_of):
    module = srgan.SRResNet(channels=1, width=4, axis_name="batch")
    rng = np.random.default_rng(1)
    x = rng.integers(0, 256, (2, 16, 24, 1)).astype(np.float32) / 256  # sums of them are exact
    variables = variables_of(module, x.shape)
    apply = jax.jit(lambda x: module.apply(variables, x, False))
    cells = x.reshape(2, 4, 4, 6, 4, 1).transpose(0, 1, 3, 2, 4, 5).reshape(2, 4, 6, 16)
    shuffled = rng.permuted(cells, axis=-1).reshape(2, 4, 6, 4, 4, 1)
    shuffled = shuffled.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape)
    assert np.any(shuffled != x)
    y = apply(x)
    assert y.shape == x.shape
    assert y.dtype == jnp.float32
    assert np.all((y >= 0) & (y <= 1))
    np.testing.assert_allclose(apply(shuffled), y, atol=1e-6)
    rolled = apply(np.roll(x, 2, axis=1))  # other cells, so other means
    assert np.abs(rolled - y).max() > 1e-3


def test_without_its_blocks_the_generator_is_the_long_skip(variables_of):
    """Batch norms that yield zero leave the first stage, the up-samplings and the last layer."""
    module = srgan.SRResNet(width=4)
    x = jax.random.uniform(jax.random.key(0), (2, 8, 12, 3))
    variables = variables_of(module, x.shape)
    params = variables["params"]
    for name in params:
        if "BatchNorm" in name:
            params[name] = jax.tree.map(jnp.zeros_like, params[name])
    stats = variables["batch_stats"]

    def conv(x, name, size):
        kernel = params[name]["kernel"]
        assert kernel.shape[:2] == (size, size)
        return nn.Conv(kernel.shape[-1], (size, size)).apply({"params": params[name]}, x)

    def prelu(x, name):
        return jnp.where(x > 0, x, params[name]["negative_slope"] * x)

    @jax.jit
    def by_definition(x):
        y = prelu(conv(x.reshape(2, 2, 4, 3, 4, 3).mean((2, 4)), "Conv_0", 9), "PReLU_0")
        for i in range(2):
            y = prelu(srgan.pixel_shuffle(conv(y, f"Conv_{12 + i}", 3), 2), f"PReLU_{6 + i}")
        return 1 / (1 + jnp.exp(-conv(y, "Conv_14", 9)))

    apply = jax.jit(lambda x: module.apply({"params": params, "batch_stats": stats}, x, False))
    np.testing.assert_allclose(apply(x), by_definition(x), atol=1e-5)
    assert np.std(apply(x)) > 1e-3


@pytest.mark.parametrize("size", [(16, 16), (32, 48)])
def test_discriminator_judges_the_mean_of_its_features_at_any_size(size, variables_of):
    module = srgan.SRDiscriminator(width=2, normalization="none")
    variables = variables_of(module, (1, 16, 16, 1))
    x = jax.random.uniform(jax.random.key(0), (2, *size, 1))
    logits, features = jax.jit(lambda: module.apply(variables, x, True))()
    assert features.shape == (2, size[0] // 16, size[1] // 16, 16)
    first, second = (variables["params"][f"Dense_{i}"] for i in range(2))
    hidden = np.mean(features, axis=(1, 2)) @ first["kernel"] + first["bias"]
    hidden = np.where(hidden > 0, hidden, 0.2 * hidden)
    expected = hidden @ second["kernel"][:, 0] + second["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-4)
    assert np.any(np.asarray(features) < 0)  # leaky


@pytest.mark.parametrize("normalization", ["batch", "group", "none"])
def test_logits_of_an_example_depend_on_the_others_only_with_batch_norm(
    normalization, variables_of
):
    module = srgan.SRDiscriminator(width=4, normalization=normalization)
    x = jax.random.uniform(jax.random.key(0), (2, 32, 32, 3))
    variables = variables_of(module, x.shape)

    @jax.jit
    def apply(x):
        return module.apply(variables, x, True, mutable=["batch_stats"])[0][0]

    logits, changed = apply(x), apply(x.at[1].set(0.5))
    assert logits.shape == (2,)
    assert not np.isclose(logits[1], changed[1], rtol=1e-3)
    assert np.isclose(logits[0], changed[0], rtol=1e-5) == (normalization != "batch")


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
