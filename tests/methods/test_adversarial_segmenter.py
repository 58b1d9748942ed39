"""The segmenter as a player: alone it is the plain one, against a discriminator it fools."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import bsdata_adversarial
from defect_jax import models, optim, steps
from defect_jax.devices import AXIS
from defect_jax.errors import UserError
from defect_jax.method import apply_train, to_float
from defect_jax.methods import make_method
from defect_jax.methods.segmenter import views
from defect_jax.train import parallel_steps, shard

SIZE = (32, 32)
PATCH = 12
RATE = 0.02


def make_config(**method):
    """Two supervised levels, pastes and flips, so that a step draws for both."""
    config = bsdata_adversarial.get_config()
    config.data.image_size = SIZE
    config.method.update(width=4, depth=2, supervised_levels=2, residual=False)
    config.method.update(method)
    config.augment.update(rotation=0.0, min_crop=1.0, max_crop=1.0, gamma=0.0, contrast=0.0)
    config.augment.update(hue=0.0, blur=0.0, noise=0.0, jpeg=0, paste_size=PATCH)
    config.optimizer.update(name="sgd", b1=0.5, schedule="constant", learning_rate=RATE)
    config.optimizer.warmup_steps = 0
    return config


@pytest.fixture(scope="module")
def batch():
    """Noise with a bright square, the defect, on every other image; donors have one too."""
    rng = np.random.default_rng(0)
    count = 4 * jax.local_device_count()
    mask = np.zeros((count, *SIZE), np.uint8)
    for number, (row, column) in enumerate(rng.integers(2, 20, (count, 2))):
        mask[number, row : row + 8, column : column + 8] = number % 2
    donor_mask = np.zeros((count, PATCH, PATCH), np.uint8)
    donor_mask[:, 4:8, 3:9] = 1
    return {
        "image": bright(rng, mask),
        "mask": mask,
        "label": mask.any((1, 2)).astype(np.int32),
        "index": np.arange(count, dtype=np.int32),
        "donor_image": bright(rng, donor_mask),
        "donor_mask": donor_mask,
    }


def bright(rng, mask):
    image = rng.normal(80, 8, (*mask.shape, 3)) + 100 * mask[..., None]
    return image.clip(0, 255).astype(np.uint8)


def make_fit(config, batch):
    """The method of a config, and num_steps up to 20 -> state and metrics, compiled once."""
    method = make_method(config)
    initial = jax.jit(method.init)(jax.random.PRNGKey(0), batch)
    order = shard(np.tile(batch["index"], (20, 1)), axis=1)
    data = {name: values for name, values in batch.items() if name != "index"}
    take_steps = parallel_steps(method.phases[0], resident=True)
    return method, lambda count: jax.device_get(take_steps(initial, data, order, order, count))


@pytest.fixture(scope="module")
def watched(batch):
    """With a weight of 0."""
    return make_fit(make_config(adversarial_weight=0.0), batch)


@pytest.fixture(scope="module")
def pulled(batch):
    """With a weight of 3."""
    return make_fit(make_config(adversarial_weight=3.0), batch)


def test_with_a_weight_of_zero_it_is_the_plain_segmenter(watched, batch):
    method, (state, metrics) = watched[0], watched[1](20)
    plain_method, fit = make_fit(make_config(name="segmenter"), batch)
    plain, plain_metrics = fit(20)
    for name in ("params", "batch_stats", "opt_state"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            getattr(state, name)["generator"],
            getattr(plain, name),
        )
    for name in ("loss", "cross_entropy", "focal_tversky"):
        np.testing.assert_allclose(metrics[name], plain_metrics[name], rtol=1e-4)
    one, other = (m.predict(s, batch) for m, s in ((method, state), (plain_method, plain)))
    for name in ("score", "score_map", "mask_logits"):
        np.testing.assert_allclose(one[name], other[name], rtol=1e-3, atol=1e-3)


def test_a_weight_pulls_the_segmenter_to_masks_that_are_taken_for_drawn(watched, pulled, batch):
    """A step of SGD with and without differ by the gradient of the generator's loss."""
    config = make_config()
    alone, moved = (fit(1)[0].params["generator"] for _, fit in (watched, pulled))
    initial = jax.jit(watched[0].init)(jax.random.PRNGKey(0), batch)
    keys = steps.example_keys(initial.rng, batch["index"])
    image = views(config.augment, batch, keys)[0]
    discriminator = models.make_discriminator(config, "group")

    def undrawn(params):
        logits, _ = apply_train(
            models.make_segmenter(config), params, initial.batch_stats["generator"], image
        )
        seen = jnp.concatenate([image, jax.nn.softmax(logits[0])], axis=-1)
        judging = {"params": initial.params["discriminator"]}
        odds = discriminator.apply(judging, seen, train=True)[0]
        return -jnp.mean(jax.nn.log_sigmoid(odds))

    gradient = jax.vmap(jax.grad(undrawn), axis_name=AXIS)
    one_device = jax.tree.map(lambda leaf: leaf[None], initial.params["generator"])
    expected = jax.tree.map(lambda leaf: leaf[0], jax.jit(gradient)(one_device))
    assert max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(expected)) > 1e-2
    jax.tree.map(
        lambda one, other, slope: np.testing.assert_allclose(
            (one - other) / (3.0 * RATE), slope, rtol=1e-3, atol=1e-5
        ),
        alone,
        moved,
        expected,
    )


def test_the_loss_is_that_of_the_pixels_and_of_the_game(pulled):
    metrics = pulled[1](20)[1]
    parts = metrics["cross_entropy"] + metrics["focal_tversky"] + 3.0 * metrics["adversarial"]
    np.testing.assert_allclose(metrics["generator_loss"], parts, rtol=1e-5)
    np.testing.assert_array_equal(metrics["loss"], metrics["generator_loss"])


def test_the_discriminator_learns_to_tell_drawn_masks_from_predicted_ones(watched, batch):
    method, (state, metrics) = watched[0], watched[1](20)
    assert metrics["discriminator_loss"][-1] < 0.1 < metrics["discriminator_loss"][0]
    predicted = jax.nn.softmax(method.predict(state, batch)["mask_logits"])
    drawn = jax.nn.one_hot(batch["mask"], 2)
    discriminator = models.make_discriminator(make_config(), "group")
    variables = optim.trained_variables(state, "discriminator")

    def judge(mask):
        seen = jnp.concatenate([to_float(jnp.asarray(batch["image"])), mask], axis=-1)
        return discriminator.apply(variables, seen, train=False)[0].mean()

    assert judge(drawn) > judge(predicted)


def test_the_discriminator_sees_colours_and_classes():
    config = make_config()
    config.data.num_classes = 4
    example = {"image": jnp.zeros((1, *SIZE, 3), jnp.uint8)}
    state = jax.eval_shape(make_method(config).init, jax.random.PRNGKey(0), example)
    kernels = [leaf for leaf in jax.tree.leaves(state.params["discriminator"]) if leaf.ndim == 4]
    assert [kernel.shape[2] for kernel in kernels].count(3 + 4) == 1


@pytest.mark.parametrize("name", ["segmenter", "adversarial_segmenter"])
def test_a_segmenter_without_losses_is_refused(name):
    with pytest.raises(UserError, match=r"method\.losses is empty"):
        make_method(make_config(name=name, losses=()))


@pytest.mark.parametrize("weight", [-0.1, float("inf"), float("nan")])
def test_a_wrong_weight_is_refused(weight):
    with pytest.raises(UserError, match=rf"adversarial_weight is {weight}: .*at least 0"):
        make_method(make_config(adversarial_weight=weight))


def test_an_unknown_discriminator_is_named():
    with pytest.raises(UserError, match=r"unknown method.discriminator 'judge': choose one of"):
        make_method(make_config(discriminator="judge"))
