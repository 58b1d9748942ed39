"""Which loss of which image each player follows, beside the papers' formulas in NumPy.

The networks are of one or two matrices, so that the formulas need no JAX. Where a method draws
numbers, NumPy draws others, and the means over many examples agree.
"""

import importlib

import flax.linen as nn
import jax
import numpy as np
import pytest

from defect_jax import models
from defect_jax.devices import AXIS
from defect_jax.methods import make_method
from defect_jax.models.autoencoder import Autoencoder

SIZE = (2, 4)
CODE_DIM = 2
DRAWS = 8192
WEIGHTS = {
    "reconstruction": 3.0,
    "adversarial": 1.0,
    "feature": 0.5,
    "latent": 2.0,
    "total_variation": 4.0,
}


class Encoder(nn.Module):
    code_channels: int

    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(self.code_channels)(x.reshape(len(x), 1, 1, -1))


class Decoder(nn.Module):
    @nn.compact
    def __call__(self, code, train):
        return nn.Dense(SIZE[0] * SIZE[1])(code).reshape(-1, *SIZE, 1)


class Judge(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        features = nn.Dense(3)(x.reshape(len(x), -1))
        return nn.Dense(1)(features**2)[:, 0], features


@pytest.fixture(autouse=True)
def tiny_networks(monkeypatch):
    def coder(config, variational):
        return Autoencoder(Encoder(CODE_DIM * (2 if variational else 1)), Decoder(), variational)

    monkeypatch.setitem(models.CODERS, "dcgan", coder)
    monkeypatch.setitem(models.DISCRIMINATORS, "dcgan", lambda *shape, **shared: Judge())


def make_config(name, **method):
    """Plain steps down the gradient, at a rate of 1."""
    config = importlib.import_module(f"configs.mvtec_{name}").get_config()
    config.data.update(image_size=SIZE, channels=1)
    config.augment.lighting_probability = 0.0
    config.optimizer.update(name="sgd", b1=0.0, schedule="constant", learning_rate=1.0)
    config.method.update(code_dim=CODE_DIM, losses=("l2",), residual="l2", smoothing=0.0)
    config.method.update(method)
    return config


def make_batch(count):
    image = np.random.default_rng(0).integers(0, 256, (count, *SIZE, 1)).astype(np.uint8)
    return {
        "image": image,
        "mask": np.zeros((count, *SIZE), np.uint8),
        "index": np.arange(count, dtype=np.int32),
        "weight": np.ones(count, np.float32),
    }


def make_state(method, batch):
    """As the method's `init` makes it, but for the values, which need no compiler then."""
    rng = np.random.default_rng(2)
    shapes = jax.eval_shape(method.init, jax.random.PRNGKey(0), batch)
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    # Biases are drawn too: without them some gradients cancel.
    params = jax.tree.map(lambda leaf: np.float32(rng.normal(0, 0.4, leaf.shape)), shapes.params)
    return state.replace(params=params)


def take_step(config, count, phase=0):
    """The images, the parameters, the gradient that the first step follows, and its metrics."""
    method, batch = make_method(config), make_batch(count)
    state = make_state(method, batch)
    step = jax.vmap(method.phases[phase].train_step, (None, 0), None, axis_name=AXIS)
    one_device = jax.tree.map(lambda values: values[None], batch)
    after, metrics = jax.jit(step)(state, one_device)
    params, moved = (jax.tree.map(np.float64, s.params) for s in (state, after))
    return batch["image"] / 255, params, jax.tree.map(np.subtract, params, moved), metrics


def slope(loss, params, step=1e-4):
    """The gradient of a loss by central differences, one parameter after another."""
    params = jax.tree.map(np.copy, params)
    gradient = jax.tree.map(np.zeros_like, params)
    for leaf, out in zip(jax.tree.leaves(params), jax.tree.leaves(gradient), strict=True):
        for place in np.ndindex(leaf.shape):
            value = leaf[place]
            leaf[place] = value + step
            up = loss(params)
            leaf[place] = value - step
            out[place] = (up - loss(params)) / (2 * step)
            leaf[place] = value
    return gradient


def check_metrics(metrics, expected, rtol):
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=rtol, err_msg=name)


def check_gradient(gradient, expected, rtol):
    """Of each of the parameters' arrays, by its length."""

    def check(path, found, wanted):
        error, length = np.linalg.norm(found - wanted), np.linalg.norm(wanted)
        assert error <= rtol * length + 1e-5, f"{jax.tree_util.keystr(path)}: {error} of {length}"

    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected)) > 1e-2
    jax.tree_util.tree_map_with_path(check, gradient, expected)


def dense(layer, x):
    return x @ layer["kernel"] + layer["bias"]


def encode(params, image):
    return dense(params["Dense_0"], image.reshape(len(image), -1))


def decode(params, code):
    return dense(params["Dense_0"], code).reshape(-1, *SIZE, 1)


def judge(params, image):
    features = dense(params["Dense_0"], image.reshape(len(image), -1))
    return dense(params["Dense_1"], features**2)[:, 0], features


def slope_of_judge(params, image):
    """[B, pixels], by the chain rule."""
    _, features = judge(params, image)
    return 2 * features * params["Dense_1"]["kernel"][:, 0] @ params["Dense_0"]["kernel"].T


def squares(x, y):
    return np.mean((x - y) ** 2)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def autoencoder_losses(params, image, consistency):
    code = encode(params["encoder"], image)
    rebuilt = decode(params["decoder"], code)
    again = encode(params["encoder"], rebuilt)
    parts = {
        "l2": squares(image, rebuilt),
        "consistency": np.sum((code - again) ** 2) / image.size,
    }
    return parts | {"loss": (1 - consistency) * parts["l2"] + consistency * parts["consistency"]}


def vae_losses(params, image, noise, consistency, kl_weight):
    """Kingma and Welling 2014, section 2.4 and appendix B."""
    mean, log_variance = np.split(encode(params["encoder"], image), 2, axis=-1)
    code = mean + np.exp(log_variance / 2) * noise
    rebuilt = decode(params["decoder"], code)
    again, _ = np.split(encode(params["encoder"], rebuilt), 2, axis=-1)
    kl = 0.5 * np.sum(mean**2 + np.exp(log_variance) - 1 - log_variance, axis=-1)
    parts = {
        "l2": squares(image, rebuilt),
        "consistency": np.sum((code - again) ** 2) / image.size,
        "kl": np.mean(kl),
    }
    loss = (1 - consistency) * parts["l2"] + consistency * parts["consistency"]
    return parts | {"loss": loss + kl_weight * parts["kl"]}


def adversarial_losses(params, image):
    """Akcay et al. 2018, section 3.2, with the losses of Goodfellow et al. 2014, section 3."""
    coder = params["generator"]["autoencoder"]
    code = encode(coder["encoder"], image)
    rebuilt = decode(coder["decoder"], code)
    real, real_features = judge(params["discriminator"], image)
    fake, fake_features = judge(params["discriminator"], rebuilt)
    parts = {
        "reconstruction": squares(image, rebuilt),
        "adversarial": -np.mean(np.log(sigmoid(fake))),
        "feature": squares(real_features, fake_features),
        "latent": squares(code, encode(params["generator"]["re_encoder"], rebuilt)),
        "total_variation": np.mean(np.diff(rebuilt, axis=1) ** 2)
        + np.mean(np.diff(rebuilt, axis=2) ** 2),
    }
    return parts | {
        "generator_loss": sum(WEIGHTS[name] * part for name, part in parts.items()),
        "discriminator_loss": -np.mean(np.log(sigmoid(real)) + np.log(1 - sigmoid(fake))),
    }


def gan_losses(params, image, code, share, penalty_weight):
    """Gulrajani et al. 2017, equation 3, and for the generator its first term negated."""
    drawn = decode(params["generator"], code)
    real, fake = (np.mean(judge(params["discriminator"], x)[0]) for x in (image, drawn))
    between = share * image + (1 - share) * drawn
    lengths = np.linalg.norm(slope_of_judge(params["discriminator"], between), axis=-1)
    penalty = np.mean((lengths - 1) ** 2)
    return {
        "generator_loss": -fake,
        "discriminator_loss": fake - real + penalty_weight * penalty,
        "penalty": penalty,
        "wasserstein": real - fake,
    }


def encoder_losses(params, image, feature_weight):
    """Schlegl et al. 2019, equation 5 (izi_f)."""
    rebuilt = decode(params["generator"], encode(params["encoder"], image))
    features = (judge(params["discriminator"], x)[1] for x in (image, rebuilt))
    parts = {"reconstruction": squares(image, rebuilt), "feature": squares(*features)}
    return parts | {"encoder_loss": parts["reconstruction"] + feature_weight * parts["feature"]}


def check_players(losses, params, gradient, players, rtol):
    """Each player follows the gradient of its own loss."""
    for player in players:
        expected = slope(
            lambda moved, player=player: losses(params | {player: moved})[f"{player}_loss"],
            params[player],
        )
        check_gradient(gradient[player], expected, rtol)


def test_an_autoencoder_follows_pixels_and_the_codes_of_image_and_reconstruction():
    config = make_config("constrained_autoencoder", consistency=0.3)
    image, params, gradient, metrics = take_step(config, 6)
    check_metrics(metrics, autoencoder_losses(params, image, 0.3), rtol=1e-4)
    expected = slope(lambda params: autoencoder_losses(params, image, 0.3)["loss"], params)
    check_gradient(gradient, expected, rtol=1e-3)


def test_a_vae_follows_the_losses_of_codes_drawn_around_the_mean():
    config = make_config("constrained_vae", consistency=0.3, kl_weight=0.1, kl_warmup_steps=0)
    image, params, gradient, metrics = take_step(config, DRAWS)
    noise = np.random.default_rng(1).normal(size=(DRAWS, CODE_DIM))

    def losses(params):
        return vae_losses(params, image, noise, 0.3, 0.1)

    check_metrics(metrics, losses(params), rtol=0.05)
    check_gradient(gradient, slope(lambda params: losses(params)["loss"], params), rtol=0.05)


def test_sampled_scores_of_a_vae_are_residuals_of_codes_from_the_posterior():
    config = make_config("vae", score="samples", num_samples=DRAWS)
    method, batch = make_method(config), make_batch(3)
    state = make_state(method, batch)
    score_map = jax.jit(method.predict)(state, batch)["score_map"]
    image, params = batch["image"] / 255, state.params
    mean, log_variance = np.split(encode(params["encoder"], image), 2, axis=-1)
    noise = np.random.default_rng(1).normal(size=(DRAWS, 1, CODE_DIM))
    codes = mean + np.exp(log_variance / 2) * noise
    rebuilt = decode(params["decoder"], codes).reshape(DRAWS, *image.shape)
    expected = np.mean((image - rebuilt) ** 2, axis=(0, -1))
    np.testing.assert_allclose(score_map, expected, rtol=0.1)


def test_adversarial_players_follow_the_losses_of_their_own_sides():
    config = make_config("ganomaly", **{f"{name}_weight": WEIGHTS[name] for name in WEIGHTS})
    image, params, gradient, metrics = take_step(config, 6)
    check_metrics(metrics, adversarial_losses(params, image), rtol=1e-4)
    check_players(
        lambda params: adversarial_losses(params, image),
        params,
        gradient,
        ("generator", "discriminator"),
        rtol=1e-3,
    )


def test_the_adversarial_loss_alone_moves_rebuilt_images_towards_what_passes_for_real():
    weights = dict.fromkeys((f"{name}_weight" for name in WEIGHTS), 0.0)
    config = make_config("adversarial_autoencoder", **(weights | {"adversarial_weight": 1.0}))
    image, params, gradient, metrics = take_step(config, 6)

    def odds(generator):
        rebuilt = decode(generator["decoder"], encode(generator["encoder"], image))
        return judge(params["discriminator"], rebuilt)[0]

    before = odds(params["generator"])
    loss = -np.mean(np.log(sigmoid(before)))
    np.testing.assert_allclose(metrics["generator_loss"], loss, rtol=1e-4)
    for part in ("encoder", "decoder"):
        assert np.abs(gradient["generator"][part]["Dense_0"]["kernel"]).max() > 1e-3, part
    small = jax.tree.map(lambda p, g: p - 0.01 * g, params["generator"], gradient["generator"])
    assert odds(small).mean() > before.mean()


def test_players_of_f_anogan_follow_the_wasserstein_losses_and_the_penalty_between_images():
    config = make_config("f_anogan", penalty_weight=2.0, discriminator_learning_rate=1.0)
    image, params, gradient, metrics = take_step(config, DRAWS)
    rng = np.random.default_rng(1)
    code, share = rng.normal(size=(DRAWS, CODE_DIM)), rng.uniform(size=(DRAWS, 1, 1, 1))

    def losses(params):
        return gan_losses(params, image, code, share, 2.0)

    check_metrics(metrics, losses(params), rtol=0.1)
    check_players(losses, params, gradient, ("generator", "discriminator"), rtol=0.1)
    small = jax.tree.map(lambda p, g: p - 0.01 * g, params["generator"], gradient["generator"])
    before, after = (decode(generator, code) for generator in (params["generator"], small))
    critic = params["discriminator"]
    assert judge(critic, after)[0].mean() > judge(critic, before)[0].mean()


def test_the_encoder_of_f_anogan_follows_pixels_and_features():
    config = make_config("f_anogan", feature_weight=0.7)
    image, params, gradient, metrics = take_step(config, 6, phase=1)

    def losses(params):
        return encoder_losses(params, image, 0.7)

    check_metrics(metrics, losses(params), rtol=1e-4)
    check_players(losses, params, gradient, ("encoder",), rtol=1e-3)
