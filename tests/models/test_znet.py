"""ZNet against its layers written out in NumPy, and its parameter count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from defect_jax import errors
from defect_jax.models import znet
from tests.models import reference

ENDS = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * special.ndtr(x),
    "sigmoid": special.expit,
}


def test_parameter_count(count_of):
    """Theirs is stated as 4.395 million. By hand, k x k kernels and biases of convolutions plus two
    numbers a channel of batch norms: scope 522 (3 -> 6 and one shared 6 -> 6), gate 180 + 165 +
    240, stem 24,096; bottlenecks 3,520 + 13,696 + 54,016; bottom 1,639,168; ups 295,296 + 147,648
    + 36,960 + 9,264; mixes 1,639,168 + 409,984 + 102,592; top 13,344 + 2,328, gate 2,072, classes
    600 + 150.
    """
    assert count_of(znet.ZNet(), (1, 32, 32, 3)) == 4_395_009


def _by_hand(variables, x, activation, gate):
    params, stats = variables["params"], variables["batch_stats"]
    act, end = ENDS[activation], ENDS[gate]

    def block(name, x, end=act):
        layer = params[name]["Conv_0"]
        y = reference.convolve(x, layer, pad=layer["kernel"].shape[0] // 2)
        return end(reference.normalize(y, params[name]["BatchNorm_0"], stats[name]["BatchNorm_0"]))

    def up(level, x):
        name = f"up{level}_norm"
        y = reference.convolve_transpose(x, params[f"up{level}"], stride=2, pad=1, more=1)
        return act(reference.normalize(y, params[name], stats[name]))

    def join(*maps):
        return np.concatenate(maps, -1)

    def bottleneck(level, x):
        added = block(f"down{level}_middle", block(f"down{level}_narrow", x))
        return join(x, block(f"down{level}_wide", added))

    one = block("scope_start", x)
    two = block("scope_again", one)
    three = block("scope_again", two)
    four = block("scope_again", three)
    five = block("scope_again", four)
    colours = block("colours", x).mean((1, 2), keepdims=True)
    weights = block("gate_wide", block("gate_narrow", colours, end), end)
    x0 = join(one, two, three, four, five) * weights
    x1 = reference.max_pool(block("stem", x0))
    x2 = reference.max_pool(bottleneck(1, x1))
    x3 = reference.max_pool(bottleneck(2, x2))
    x4 = block("bottom", reference.max_pool(bottleneck(3, x3)))
    y = block("up3_mix", join(up(3, x4), x3))
    y = block("up2_mix", join(up(2, y), x2))
    y = block("up1_mix", join(up(1, y), x1))
    y = block("top_narrow", block("top_mix", join(up(0, y), x0)))
    y = y * block("top_gate", x4.mean((1, 2), keepdims=True), end)
    return block("classes", block("classes_mix", y))


@pytest.mark.parametrize(
    ("activation", "gate"), [("relu", "relu"), ("gelu", "sigmoid"), ("gelu", "gelu")]
)
def test_equals_its_layers_written_out(activation, gate, variables_of):
    module = znet.ZNet(activation=activation, gate=gate)
    x = np.random.default_rng(0).uniform(size=(2, 32, 48, 3)).astype(np.float32)
    variables = variables_of(module, x.shape)
    actual = jax.jit(lambda v: module.apply(v, x, False))(variables)
    expected = _by_hand(variables, x.astype(np.float64), activation, gate)
    assert expected.std() > 0.02 * np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_the_scope_is_one_layer(shapes_of):
    variables = shapes_of(znet.ZNet(), (1, 16, 16, 3))
    again = variables["params"]["scope_again"]["Conv_0"]
    assert again["kernel"].shape == (3, 3, 6, 6)
    assert variables["params"]["stem"]["Conv_0"]["kernel"].shape == (5, 5, 30, 32)


def test_bfloat16_keeps_float32_parameters_and_result():
    module = znet.ZNet(num_classes=3, dtype=jnp.bfloat16)
    x = jnp.zeros((2, 16, 16, 3))
    y, variables = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), x, True))
    assert y.shape == (2, 16, 16, 3)
    assert {leaf.dtype for leaf in jax.tree.leaves((y, variables))} == {jnp.dtype("float32")}


def test_wrong_size_is_named(shapes_of):
    with pytest.raises(errors.UserError, match=r"znet .* multiples of 16, found 24x32"):
        shapes_of(znet.ZNet(), (1, 24, 32, 3))


@pytest.mark.parametrize("name", ["activation", "gate"])
def test_unknown_names_are_told(name, shapes_of):
    with pytest.raises(errors.UserError, match=rf"method\.{name}"):
        shapes_of(znet.ZNet(**{name: "tanh"}), (1, 16, 16, 3))
