"""Each method learns, and predicts what its interface promises."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from configs import bsdata_unet, mvtec_autoencoder
from defect_jax import optim
from defect_jax.errors import UserError
from defect_jax.method import to_float
from defect_jax.methods import make_method
from defect_jax.methods.scoring import score_image
from defect_jax.methods.segmenter import log_odds, pixel_losses
from defect_jax.train import parallel_steps, shard

SIZE = (32, 32)


def autoencoder_config():
    config = mvtec_autoencoder.get_config()
    config.data.update(image_size=SIZE)
    config.method.update(model="ssim_net", code_dim=16, losses=("l2",), residual="l2", smoothing=0)
    config.augment.lighting_probability = 0.0
    config.optimizer.update(schedule="constant", learning_rate=3e-3)
    return config


def segmenter_config():
    config = bsdata_unet.get_config()
    config.data.update(image_size=SIZE)
    config.method.update(width=8, depth=1)
    config.augment.update(flip_horizontal=False, flip_vertical=False, lighting_probability=0.0)
    config.optimizer.update(schedule="constant", learning_rate=3e-3, warmup_steps=0)
    return config


@pytest.fixture(scope="module")
def batch():
    """Noisy gradients, each with a bright square, the defect."""
    rng = np.random.default_rng(0)
    devices = jax.local_device_count()
    count = 4 * devices
    image = np.linspace(40, 120, 32)[None, :, None, None] + rng.normal(0, 8, (count, *SIZE, 3))
    mask = np.zeros((count, *SIZE), np.uint8)
    for number, (row, column) in enumerate(rng.integers(2, 20, (count, 2))):
        mask[number, row : row + 8, column : column + 8] = 1
    image = np.where(mask[..., None] == 1, image + 100, image).clip(0, 255).astype(np.uint8)
    return {
        "image": image,
        "mask": mask,
        "label": np.ones(count, np.int32),
        "index": np.arange(count, dtype=np.int32),
        "weight": np.ones(count, np.float32),
    }


def fit(config, batch, num_steps):
    method = make_method(config)
    state = jax.jit(method.init)(jax.random.PRNGKey(0), batch)
    order = shard(np.tile(batch["index"], (num_steps, 1)), axis=1)
    data = {name: batch[name] for name in ("image", "mask", "label")}
    take_steps = parallel_steps(method.phases[0], resident=True)
    state, metrics = take_steps(state, data, order, order, num_steps)
    return method, state, metrics["loss"]


@pytest.fixture(scope="module")
def autoencoder(batch):
    return fit(autoencoder_config(), batch, 80)


@pytest.fixture(scope="module")
def segmenter(batch):
    return fit(segmenter_config(), batch, 80)


@pytest.fixture(scope="module")
def residual_segmenter(batch):
    config = segmenter_config()
    config.method.update(
        residual=True,
        depth=2,
        supervised_levels=2,
        losses=("outline_cross_entropy", "batch_dice", "focal_tversky"),
    )
    config.eval.flip_average = True
    return fit(config, batch, 80)


@pytest.mark.parametrize("name", ["autoencoder", "segmenter", "residual_segmenter"])
def test_one_batch_is_learned_by_heart(name, request):
    _, _, losses = request.getfixturevalue(name)
    assert np.isfinite(losses).all() and losses[-1] < 0.25 * losses[0]


@pytest.mark.parametrize("name", ["autoencoder", "segmenter", "residual_segmenter"])
def test_predictions_have_the_promised_shapes(name, request, batch):
    method, state, _ = request.getfixturevalue(name)
    prediction = method.predict(state, batch)
    count = len(batch["image"])
    assert prediction["score"].shape == (count,)
    assert prediction["score_map"].shape == (count, *SIZE)
    assert prediction["score_map"].dtype == jnp.float32
    np.testing.assert_allclose(prediction["score"], prediction["score_map"].max((1, 2)), rtol=1e-6)


def test_an_autoencoder_maps_its_residual(autoencoder, batch):
    method, state, _ = autoencoder
    prediction = method.predict(state, batch)
    assert prediction["reconstruction"].min() >= 0 and prediction["reconstruction"].max() <= 1
    residual = (to_float(batch["image"]) - prediction["reconstruction"]) ** 2
    np.testing.assert_allclose(prediction["score_map"], residual.mean(-1), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["segmenter", "residual_segmenter"])
def test_a_segmenter_finds_what_it_was_taught(name, request, batch):
    method, state, _ = request.getfixturevalue(name)
    prediction = method.predict(state, batch)
    found = prediction["mask_logits"].argmax(-1)
    truth = batch["mask"]
    assert np.logical_and(found, truth).sum() / np.logical_or(found, truth).sum() > 0.8
    np.testing.assert_array_equal(prediction["score_map"] > 0, found == 1)


def test_the_average_over_flips_turns_with_the_image(residual_segmenter, batch):
    method, state, _ = residual_segmenter
    plain = method.predict(state, batch)
    for axis in (1, 2):
        turned = method.predict(state, {**batch, "image": np.flip(batch["image"], axis)})
        for name in ("score_map", "mask_logits"):
            np.testing.assert_allclose(np.flip(turned[name], axis), plain[name], atol=2e-3)


def test_levels_weigh_half_as_much_each():
    """A defect of one pixel at (3, 3), which the half-sized level sees at (1, 1)."""
    method = ml_collections.ConfigDict({"losses": ("cross_entropy",)})
    mask = np.zeros((1, 4, 4), np.uint8)
    mask[0, 3, 3] = 1
    top, half = np.zeros((1, 4, 4, 2), np.float32), np.zeros((1, 2, 2, 2), np.float32)
    half[0, ..., 0] = 3.0
    half[0, 1, 1] = (0.0, 3.0)
    expected = 2 / 3 * np.log(2) + 1 / 3 * np.log1p(np.exp(-3))
    actual = pixel_losses(method)((top, half), mask)["cross_entropy"]
    np.testing.assert_allclose(actual, [expected], rtol=1e-5)


def test_log_odds_of_many_classes():
    logits = jnp.log(jnp.array([[[[0.5, 0.3, 0.2]]]]))
    np.testing.assert_allclose(log_odds(logits), np.log(0.5 / 0.5), atol=1e-6)


def test_the_average_of_the_parameters_predicts(segmenter, batch):
    method, state, _ = segmenter
    average = optim.trained_variables(state)["params"]
    swapped = state.replace(params=jax.tree.map(jnp.zeros_like, state.params))
    np.testing.assert_array_equal(
        method.predict(state, batch)["score"], method.predict(swapped, batch)["score"]
    )
    changed = jax.tree.map(lambda a, b: np.abs(a - b).max(), average, state.params)
    assert max(jax.tree.leaves(changed)) > 0


def test_top_fraction_is_the_mean_of_the_highest_pixels():
    score_map = jnp.arange(100.0).reshape(1, 10, 10)
    assert score_image(score_map, 0.0, 0.0)["score"] == 99
    np.testing.assert_allclose(score_image(score_map, 0.0, 0.05)["score"], [97.0])


def test_smoothing_comes_before_the_score():
    spike = jnp.zeros((1, 21, 21)).at[0, 10, 10].set(1.0)
    smoothed = score_image(spike, 2.0, 0.0)
    np.testing.assert_allclose(smoothed["score_map"].sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(smoothed["score"], 1 / (2 * np.pi * 4), rtol=2e-2)


def test_parameters_and_losses_stay_float32_in_bfloat16(batch):
    config = segmenter_config()
    config.dtype = "bfloat16"
    method, state, losses = fit(config, batch, 2)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert method.predict(state, batch)["score_map"].dtype == jnp.float32
    assert np.isfinite(losses).all()


def test_a_size_that_the_network_cannot_halve_is_an_error():
    config = segmenter_config()
    config.data.image_size = (31, 32)
    method = make_method(config)
    with pytest.raises(UserError, match=r"multiples of 2, found 31x32"):
        jax.eval_shape(
            method.init, jax.random.PRNGKey(0), {"image": jnp.zeros((1, 31, 32, 3), jnp.uint8)}
        )


def test_a_step_in_parts_of_a_network_without_batch_norm_is_that_of_the_whole(batch):
    config = segmenter_config()
    config.method.update(normalization="group", losses=("cross_entropy",), width=4)
    config.optimizer.update(name="sgd", learning_rate=0.1, ema_decay=0.0)
    before = jax.jit(make_method(config).init)(jax.random.PRNGKey(0), batch).params
    whole = fit(config, batch, 1)[1].params
    config.train.accumulate = 2
    split = fit(config, batch, 1)[1].params

    def furthest(one, other):
        distances = jax.tree.map(lambda a, b: np.abs(a - b).max(), one, other)
        return max(jax.tree.leaves(distances))

    assert furthest(split, whole) < 1e-6 < 1e-2 < furthest(whole, before)
