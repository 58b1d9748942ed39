"""How a method starts."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from defect_jax.method import init_players, init_state
from defect_jax.models.layers import BatchNorm, Conv, ConvTranspose


class Net(nn.Module):
    """One of each kind of layer."""

    @nn.compact
    def __call__(self, x, train):
        x = BatchNorm(train)(Conv(64, (3, 3))(x))
        x = nn.PReLU(negative_slope_init=0.25)(Conv(64, (3, 3))(x))
        x = ConvTranspose(64, (4, 4), (2, 2))(x)
        return nn.Dense(300)(x)


BATCH = {"image": jnp.zeros((2, 8, 8, 32), jnp.uint8)}
LAYERS = ["Conv_0", "Conv_1", "ConvTranspose_0", "Dense_0"]


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda rng: init_state(Net(), optax.sgd(1.0), rng, BATCH))(
        jax.random.PRNGKey(0)
    ).params


@pytest.mark.parametrize("layer", LAYERS)
def test_kernels_start_from_the_distribution_that_flax_draws_them_from(params, layer):
    kernel = params[layer]["kernel"]
    reference = nn.initializers.lecun_normal()(jax.random.PRNGKey(1), kernel.shape)
    np.testing.assert_allclose(kernel.mean(), 0, atol=4 * kernel.std() / kernel.size**0.5)
    np.testing.assert_allclose(kernel.std(), reference.std(), rtol=0.03)
    np.testing.assert_allclose(jnp.abs(kernel).max(), jnp.abs(reference).max(), rtol=0.02)
    quantiles = np.linspace(0.05, 0.95, 7)
    np.testing.assert_allclose(
        np.quantile(kernel, quantiles),
        np.quantile(reference, quantiles),
        atol=0.05 * float(reference.std()),
    )


def test_no_two_kernels_start_from_the_same_numbers(params):
    starts = [np.ravel(params[layer]["kernel"] / params[layer]["kernel"].std()) for layer in LAYERS]
    draws = np.concatenate(starts)
    assert len(np.unique(draws)) > 0.99 * len(draws)


def test_all_but_kernels_start_as_their_layers_say(params):
    assert (params["BatchNorm_0"]["scale"] == 1).all()
    assert (params["PReLU_0"]["negative_slope"] == 0.25).all()
    for layer in LAYERS:
        assert (params[layer]["bias"] == 0).all()


def test_players_start_from_numbers_of_their_own():
    players, tx = {"one": Net(), "other": Net()}, optax.sgd(1.0)
    image = jnp.zeros((1, 8, 8, 32))
    state = jax.jit(
        lambda rng: init_players(
            players, dict.fromkeys(players, tx), dict.fromkeys(players, image), rng
        )
    )(jax.random.PRNGKey(0))
    one, other = (state.params[name]["Conv_0"]["kernel"] for name in players)
    assert abs(np.corrcoef(np.ravel(one), np.ravel(other))[0, 1]) < 0.05
    assert state.opt_state.keys() == state.batch_stats.keys() == players.keys()
