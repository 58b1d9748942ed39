"""The layers against flax's own: parameters, values and gradients."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from defect_jax import errors
from defect_jax.models import layers


@functools.partial(jax.jit, static_argnums=0)
def _run(layer, params, x, cotangent):
    """Returns the output and its gradients by parameters and input."""
    y, pull = jax.vjp(lambda p, x: layer.apply({"params": p}, x), params, x)
    return y, pull(cotangent)


def _normal(rng, shape):
    return rng.normal(size=shape).astype(np.float32)


def _assert_same_layer(ours, theirs, shape):
    rng = np.random.default_rng(0)
    x = _normal(rng, shape)
    y, variables = jax.eval_shape(lambda: ours.init_with_output(jax.random.key(0), x))
    assert (y, variables) == jax.eval_shape(lambda: theirs.init_with_output(jax.random.key(0), x))
    params = jax.tree.map(lambda leaf: _normal(rng, leaf.shape), variables["params"])
    cotangent = _normal(rng, y.shape)
    first, second = (_run(layer, params, x, cotangent) for layer in (ours, theirs))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), first, second)


CONV_CASES = {
    "3x3_same": ((3, 3), (1, 1), "SAME", (2, 6, 5, 3)),
    "3x3_s2_torch_padding": ((3, 3), (2, 2), 1, (2, 8, 6, 3)),
    "4x4_s2_same_odd_size": ((4, 4), (2, 2), "SAME", (2, 7, 9, 3)),
    "explicit_uneven": ((3, 2), (2, 1), ((0, 2), (1, 0)), (2, 7, 6, 3)),
    "1x1": ((1, 1), (1, 1), "SAME", (2, 4, 5, 3)),
    "1x1_s2": ((1, 1), (2, 2), "VALID", (2, 5, 4, 3)),
    "whole_input": ((5, 4), (1, 1), "VALID", (2, 5, 4, 3)),
    "whole_input_same": ((3, 3), (1, 1), "SAME", (2, 3, 3, 3)),
}


@pytest.mark.parametrize("case", CONV_CASES)
def test_conv_equals_flax(case):
    size, strides, padding, shape = CONV_CASES[case]
    arguments = (4, size, strides, padding)
    _assert_same_layer(layers.Conv(*arguments), nn.Conv(*arguments), shape)


TRANSPOSE_CASES = {
    "4x4_s2_same": ((4, 4), (2, 2), "SAME", (2, 5, 4, 3)),
    "4x4_s2_valid": ((4, 4), (2, 2), "VALID", (2, 3, 4, 3)),
    "2x2_s2_same": ((2, 2), (2, 2), "SAME", (2, 3, 4, 3)),
    "2x2_s2_valid": ((2, 2), (2, 2), "VALID", (2, 3, 4, 3)),
    "3x3_s2_same": ((3, 3), (2, 2), "SAME", (2, 3, 4, 3)),
    "5x5_s3_valid": ((5, 5), (3, 3), "VALID", (2, 3, 2, 3)),
    "2x3_s3_same": ((2, 3), (3, 3), "SAME", (2, 3, 2, 3)),
    "uneven_strides": ((3, 4), (1, 2), "SAME", (2, 3, 4, 3)),
    "integer_padding": ((4, 4), (2, 2), 1, (2, 3, 4, 3)),
    "more_padding_than_kernel": ((3, 3), (2, 2), ((4, 0), (1, 5)), (2, 3, 4, 3)),
    "3x3_s1": ((3, 3), (1, 1), "SAME", (2, 3, 4, 3)),
    "one_pixel": ((5, 4), (1, 1), "VALID", (2, 1, 1, 3)),
    "one_pixel_s2_same": ((4, 4), (2, 2), "SAME", (2, 1, 1, 3)),
}


@pytest.mark.parametrize("case", TRANSPOSE_CASES)
def test_transposed_conv_equals_flax(case):
    size, strides, padding, shape = TRANSPOSE_CASES[case]
    arguments = (4, size, strides, padding)
    _assert_same_layer(layers.ConvTranspose(*arguments), nn.ConvTranspose(*arguments), shape)


@pytest.mark.parametrize(
    ("ours", "theirs"), [(layers.Conv, nn.Conv), (layers.ConvTranspose, nn.ConvTranspose)]
)
def test_layer_without_bias_starts_as_flax_does(ours, theirs):
    x = jnp.ones((1, 3, 3, 2))
    ours, theirs = (kind(4, (2, 2), (2, 2), use_bias=False) for kind in (ours, theirs))
    variables = ours.init(jax.random.key(1), x)
    jax.tree.map(np.testing.assert_array_equal, variables, theirs.init(jax.random.key(1), x))
    np.testing.assert_allclose(ours.apply(variables, x), theirs.apply(variables, x), atol=1e-5)


@pytest.mark.parametrize("layer", [layers.Conv, layers.ConvTranspose])
def test_bfloat16_computes_in_it_from_float32_parameters(layer):
    module = layer(4, (4, 4), (2, 2), dtype=jnp.bfloat16)
    x = jax.random.normal(jax.random.key(0), (1, 6, 6, 3))
    y, variables = module.init_with_output(jax.random.key(1), x)
    assert y.dtype == jnp.bfloat16
    assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    exact = module.clone(dtype=jnp.float32).apply(variables, x)
    np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=0.05)


@pytest.mark.parametrize("shape", [(2, 6, 8, 3), (2, 5, 7, 3)])
@pytest.mark.parametrize("levels", [None, 3])
def test_max_pool_equals_flax(shape, levels):
    """With three grey levels most windows hold ties, whose gradient goes to one pixel."""
    x = jax.random.normal(jax.random.key(0), shape)
    if levels:
        x = jax.random.randint(jax.random.key(0), shape, 0, levels).astype(jnp.float32)
    y, pull = jax.vjp(layers.max_pool, x)
    expected, expected_pull = jax.vjp(lambda x: nn.max_pool(x, (2, 2), (2, 2)), x)
    cotangent = jax.random.normal(jax.random.key(1), y.shape)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(pull(cotangent)[0], expected_pull(cotangent)[0])


def test_max_pool_lets_nan_through():
    for place in np.ndindex(2, 2):
        x = jnp.zeros((1, 2, 2, 1)).at[0, place[0], place[1], 0].set(jnp.nan)
        assert np.isnan(layers.max_pool(x)).all()


class _Normalized(nn.Module):
    name_of_norm: str
    axis_name: str | None = None
    dtype: type = jnp.float32

    @nn.compact
    def __call__(self, x, train):
        return layers.normalization(self.name_of_norm, train, self.dtype, self.axis_name)(x)


def test_batch_normalization_by_formula():
    x = 3 + 2 * jax.random.normal(jax.random.key(0), (4, 5, 6, 3))
    module = _Normalized("batch")
    variables = module.init(jax.random.key(1), x, True)
    y, updated = module.apply(variables, x, True, mutable=["batch_stats"])
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(variance + 1e-5), atol=1e-5)
    running = updated["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(running["mean"], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(running["var"], 0.9 + 0.1 * variance, rtol=1e-5)
    y = module.apply({**variables, **updated}, x, False)
    expected = (x - running["mean"]) / np.sqrt(running["var"] + 1e-5)
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_batch_statistics_over_a_mapped_axis_are_those_of_the_whole_batch():
    x = jax.random.normal(jax.random.key(0), (8, 4, 4, 3)) + jnp.arange(8.0)[:, None, None, None]
    whole, apart = _Normalized("batch"), _Normalized("batch", axis_name="batch")
    variables = whole.init(jax.random.key(1), x, True)
    expected, expected_stats = whole.apply(variables, x, True, mutable=["batch_stats"])

    def apply(part):
        return apart.apply(variables, part, True, mutable=["batch_stats"])

    y, stats = jax.vmap(apply, axis_name="batch")(x.reshape(4, 2, 4, 4, 3))
    np.testing.assert_allclose(y.reshape(x.shape), expected, atol=1e-5)
    for a, b in zip(jax.tree.leaves(stats), jax.tree.leaves(expected_stats), strict=True):
        np.testing.assert_allclose(a, np.broadcast_to(b, a.shape), rtol=1e-5)


@pytest.mark.parametrize("train", [True, False])
def test_batch_normalization_equals_flax(train):
    """Values, gradients and running statistics; of a wide distribution far from zero."""
    x = 5 + 3 * jax.random.normal(jax.random.key(0), (4, 5, 6, 3))
    ours, theirs = layers.BatchNorm(train), nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5)
    variables = theirs.init(jax.random.key(1), x)
    jax.tree.map(np.testing.assert_array_equal, ours.init(jax.random.key(1), x), variables)
    params = {"scale": jnp.array([0.5, 1.0, 2.0]), "bias": jnp.array([0.0, -1.0, 3.0])}
    stats = {"mean": jnp.array([4.0, 5.0, 6.0]), "var": jnp.array([8.0, 9.0, 10.0])}
    cotangent = jax.random.normal(jax.random.key(2), x.shape)

    def run(module):
        def apply(params, x):
            state = {"params": params, "batch_stats": stats}
            return module.apply(state, x, mutable=["batch_stats"])

        y, pull, updated = jax.vjp(apply, params, x, has_aux=True)
        return y, pull(cotangent), updated

    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    jax.tree.map(close, run(ours), run(theirs))


def test_gradient_of_a_gradient_through_batch_normalization():
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 3))
    ours, theirs = layers.BatchNorm(True), nn.BatchNorm(False, momentum=0.9, epsilon=1e-5)
    params = {"scale": jnp.array([0.5, 1.0, 2.0]), "bias": jnp.array([0.0, -1.0, 3.0])}

    def penalty(module):
        def energy(x, params):
            y, _ = module.apply({"params": params}, x, mutable=["batch_stats"])
            return jnp.sum(jnp.tanh(y))

        return jax.grad(lambda x, p: jnp.sum(jax.grad(energy)(x, p) ** 2), argnums=(0, 1))

    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
    jax.tree.map(close, penalty(ours)(x, params), penalty(theirs)(x, params))


@pytest.mark.parametrize(
    "module",
    [
        layers.BatchNorm(True, dtype=jnp.bfloat16),
        layers.Conv(8, (3, 3), dtype=jnp.bfloat16),
        layers.ConvTranspose(8, (4, 4), (2, 2), dtype=jnp.bfloat16),
    ],
    ids=["BatchNorm", "Conv", "ConvTranspose"],
)
def test_gradients_in_bfloat16_are_those_in_float32_but_rounded(module):
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
    params = module.init(jax.random.key(1), x)["params"]

    def gradients(module):
        def apply(params, x):
            return module.apply({"params": params}, x, mutable=["batch_stats"])[0]

        y, pull = jax.vjp(apply, params, x)
        cotangent = jax.random.normal(jax.random.key(2), y.shape)
        return pull(cotangent.astype(y.dtype))

    def close(rounded, exact):
        assert rounded.dtype == jnp.float32
        np.testing.assert_allclose(rounded, exact, atol=0.02 * np.abs(exact).max())

    jax.tree.map(close, gradients(module), gradients(module.clone(dtype=jnp.float32)))


def test_gradients_of_batch_normalization_over_a_mapped_axis_are_those_of_the_whole_batch():
    x = jax.random.normal(jax.random.key(0), (8, 4, 4, 3)) + jnp.arange(8.0)[:, None, None, None]
    cotangent = jax.random.normal(jax.random.key(1), x.shape)
    whole, apart = layers.BatchNorm(True), layers.BatchNorm(True, axis_name="batch")
    params = whole.init(jax.random.key(1), x)["params"]

    def gradients(module, x, cotangent):
        def apply(params, x):
            return module.apply({"params": params}, x, mutable=["batch_stats"])[0]

        return jax.vjp(apply, params, x)[1](cotangent)

    expected_params, expected_x = gradients(whole, x, cotangent)
    parts = [array.reshape(4, 2, 4, 4, 3) for array in (x, cotangent)]
    of_params, of_x = jax.vmap(functools.partial(gradients, apart), axis_name="batch")(*parts)
    np.testing.assert_allclose(of_x.reshape(x.shape), expected_x, atol=1e-4)
    for name, value in expected_params.items():
        np.testing.assert_allclose(of_params[name].sum(0), value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("channels", "groups"), [(16, 8), (12, 4), (3, 1)])
def test_group_normalization_by_formula(channels, groups):
    x = 3 + jax.random.normal(jax.random.key(0), (2, 4, 5, channels))
    y = _Normalized("group").init_with_output(jax.random.key(1), x, True)[0]
    grouped = np.asarray(x).reshape(2, 20, groups, -1)
    centred = grouped - grouped.mean((1, 3), keepdims=True)
    expected = centred / np.sqrt(grouped.var((1, 3), keepdims=True) + 1e-5)
    np.testing.assert_allclose(y, expected.reshape(x.shape), atol=1e-4)


@pytest.mark.parametrize("name", ["batch", "group"])
def test_normalization_keeps_float32_parameters_and_statistics(name):
    x = jnp.ones((2, 4, 4, 8), jnp.bfloat16)
    module = _Normalized(name, dtype=jnp.bfloat16)
    y, variables = module.init_with_output(jax.random.key(0), x, True)
    assert y.dtype == jnp.bfloat16
    assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_normalization_none_and_unknown():
    x = jnp.arange(8.0).reshape(1, 2, 2, 2)
    y, variables = _Normalized("none").init_with_output(jax.random.key(0), x, True)
    np.testing.assert_array_equal(y, x)
    assert not variables
    with pytest.raises(
        errors.UserError, match="unknown normalization 'layer': choose one of batch"
    ):
        layers.normalization("layer", True, jnp.float32, None)
