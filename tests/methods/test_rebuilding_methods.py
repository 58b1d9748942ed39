"""Every way of rebuilding an image learns good surfaces and stumbles over a defect."""

import importlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from defect_jax.errors import UserError
from defect_jax.method import to_float
from defect_jax.methods import make_method, vae
from defect_jax.models import make_coder
from defect_jax.report import Reporter
from defect_jax.train import parallel_steps, shard

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
SIZE = 32
# What makes a config small and quick to train here; 80 steps where nothing is said.
SMALL = {
    "autoencoder": {"model": "ssim_net", "code_dim": 16},
    "constrained_autoencoder": {},
    "vae": {},
    "spatial_vae": {"code_dim": 8},
    "adversarial_autoencoder": {},
    "ganomaly": {},
    "srgan": {"width": 4},
    "f_anogan": {"encoder_steps": 80, "discriminator_learning_rate": 3e-3},
    "denoising_autoencoder": {"depth": 2, "width": 8},
    "inpainting": {"depth": 2, "width": 8},
}


def small_config(name):
    config = importlib.import_module(f"configs.mvtec_{name}").get_config()
    config.data.image_size = (SIZE, SIZE)
    config.augment.lighting_probability = 0.0
    config.method.smoothing = 0.0
    config.optimizer.update(schedule="constant", learning_rate=3e-3)
    config.train.num_steps = 80
    if "width" in config.method:
        config.method.width = 4
    if "code_dim" in config.method:
        config.method.code_dim = 16
    config.method.update(SMALL[name])
    return config


def batch_of(images):
    count = len(images)
    return {
        "image": images,
        "mask": np.zeros(images.shape[:3], np.uint8),
        "label": np.zeros(count, np.int32),
        "index": np.arange(count, dtype=np.int32),
        "weight": np.ones(count, np.float32),
    }


@pytest.fixture(scope="module")
def good():
    """Stripes that fade to one side: easy to learn, not flat."""
    rng = np.random.default_rng(0)
    count = 8 * jax.local_device_count()
    stripes = 20 * np.sin(np.arange(SIZE) * np.pi / 4)[:, None]
    surface = (stripes + np.linspace(60, 140, SIZE)[None])[None, ..., None]
    images = surface + rng.normal(0, 4, (count, SIZE, SIZE, 3))
    return batch_of(images.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def defective(good):
    """The same with a bright scratch across the stripes on each, as its mask says."""
    batch = {name: values.copy() for name, values in good.items()}
    batch["image"][:, 8:24, 14:18] = 240
    batch["mask"][:, 8:24, 14:18] = 1
    return batch


@pytest.fixture(scope="module")
def trained(good):
    """(name) -> config, method, state, losses of each phase; each trained once."""
    done = {}

    def train(name):
        if name not in done:
            config = small_config(name)
            method = make_method(config)
            state = jax.jit(method.init)(jax.random.PRNGKey(0), good)
            data = {key: good[key] for key in ("image", "mask", "label")}
            metrics = []
            for phase in method.phases:
                steps = phase.num_steps or config.train.num_steps
                order = shard(np.tile(good["index"], (steps, 1)), axis=1)
                state, values = parallel_steps(phase, resident=True)(
                    state, data, order, order, steps
                )
                metrics.append(jax.device_get(values))
            done[name] = config, method, state, metrics
        return done[name]

    return train


@pytest.mark.parametrize("name", SMALL)
def test_a_defect_scores_higher_than_the_good_surface_around_it(name, trained, good, defective):
    _, method, state, _ = trained(name)
    predict = jax.jit(method.predict)
    prediction, reference = predict(state, defective), predict(state, good)
    score_map, mask = np.asarray(prediction["score_map"]), defective["mask"] == 1
    assert score_map[mask].mean() > 2 * score_map[~mask].mean()
    assert score_map[mask].mean() > 2 * reference["score_map"][mask].mean()
    assert prediction["score"].min() > reference["score"].max()


@pytest.mark.parametrize("name", SMALL)
def test_predictions_are_what_the_interface_promises(name, trained, good):
    _, method, state, _ = trained(name)
    prediction = jax.jit(method.predict)(state, good)
    count = len(good["image"])
    assert prediction["score"].shape == (count,)
    assert prediction["score_map"].shape == (count, SIZE, SIZE)
    rebuilt = prediction["reconstruction"]
    assert rebuilt.shape == good["image"].shape
    assert rebuilt.min() >= 0 and rebuilt.max() <= 1


@pytest.mark.parametrize("name", SMALL)
def test_a_prediction_depends_on_its_image_alone(name, trained, good):
    _, method, state, _ = trained(name)
    predict = jax.jit(method.predict)
    turned = {key: values[::-1].copy() for key, values in good.items()}
    for key, values in predict(state, good).items():
        other = predict(state, turned)[key][::-1]
        np.testing.assert_allclose(values, other, rtol=1e-4, atol=1e-5, err_msg=key)


def test_every_config_of_a_way_to_rebuild_is_tried_here():
    """But for those that differ from one that is in nothing but their network or windows."""
    same = {"ssim_net", "ssim_net_lite", "multiscale_ssim", "red_net", "dcgan_autoencoder"}
    same |= {"constrained_vae", "deblurring"}
    names = {path.stem.removeprefix("mvtec_") for path in CONFIGS.glob("mvtec_*.py")}
    assert names == SMALL.keys() | same


@pytest.mark.parametrize("name", ["autoencoder", "vae", "inpainting"])
def test_gradient_steps_learn_a_batch_by_heart(name, trained):
    losses = trained(name)[3][0]["loss"]
    assert np.isfinite(losses).all() and losses[-1] < 0.35 * losses[0]


def test_adversarial_steps_learn_a_batch_by_heart_and_both_players_play(trained):
    metrics = trained("adversarial_autoencoder")[3][0]
    assert metrics["reconstruction"][-1] < 0.35 * metrics["reconstruction"][0]
    for player in ("generator", "discriminator"):
        assert np.isfinite(metrics[f"{player}_loss"]).all()
        assert (metrics[f"{player}_gradient_norm"] > 0).all()


def test_f_anogan_trains_two_players_and_then_the_encoder(trained, good):
    config, method, state, (gan, encoder) = trained("f_anogan")
    fresh = jax.jit(method.init)(jax.random.PRNGKey(0), good)
    assert gan["penalty"][-1] < gan["penalty"][0]
    assert encoder["loss"][-10:].mean() < 0.95 * encoder["loss"][0]
    assert state.step == config.train.num_steps + config.method.encoder_steps
    phase = parallel_steps(method.phases[1], resident=True)
    order = shard(good["index"][None], axis=1)
    data = {key: good[key] for key in ("image", "mask", "label")}
    after, _ = phase(state, data, order, order, 1)

    def moved(old, new, player):
        return any(
            not np.array_equal(a, b)
            for a, b in zip(
                jax.tree.leaves(old.params[player]),
                jax.tree.leaves(new.params[player]),
                strict=True,
            )
        )

    assert all(moved(fresh, state, player) for player in state.params)
    assert moved(state, after, "encoder")
    assert not moved(state, after, "generator") and not moved(state, after, "discriminator")


def test_ganomaly_scores_an_image_by_the_distance_of_its_codes(trained, good):
    config, method, state, _ = trained("ganomaly")
    prediction = jax.jit(method.predict)(state, good)
    assert not np.allclose(prediction["score"], prediction["score_map"].max((1, 2)))
    config.method.score = "residual"
    residual = jax.jit(make_method(config).predict)(state, good)
    config.method.score = "latent"
    np.testing.assert_allclose(residual["score"], residual["score_map"].max((1, 2)), rtol=1e-6)


def test_scores_of_a_vae(trained, defective):
    """From the mean code, from samples around it, and from the gradient of the ELBO."""
    config, _, state, _ = trained("vae")
    mask = defective["mask"] == 1
    maps = {}
    for name in vae.SCORES:
        config.method.score = name
        prediction = jax.jit(make_method(config).predict)(state, defective)
        maps[name] = np.asarray(prediction["score_map"])
    config.method.score = "mean"
    residual = np.mean((to_float(defective["image"]) - prediction["reconstruction"]) ** 2, axis=-1)
    np.testing.assert_allclose(maps["mean"], residual, rtol=1e-4, atol=1e-6)
    assert not np.allclose(maps["samples"], maps["mean"], rtol=1e-3)
    for name, score_map in maps.items():
        assert score_map[mask].mean() > 2 * score_map[~mask].mean(), name


def test_the_gradient_score_is_the_slope_of_the_elbo(trained, good):
    config, _, state, _ = trained("vae")
    config.method.score = "gradient"
    method = make_method(config)
    config.method.score = "mean"
    model = make_coder(config, variational=True)
    variables = {"params": state.params, "batch_stats": state.batch_stats}

    @jax.jit
    def negative_elbo(image):
        moments = model.apply(variables, image, False, method="encode")
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        rebuilt = model.apply(variables, mean, False, method="decode")
        kl = 0.5 * jnp.sum(mean**2 + jnp.exp(log_variance) - 1 - log_variance, axis=(1, 2, 3))
        return jnp.mean((image - rebuilt) ** 2, axis=(1, 2, 3)) + config.method.kl_weight * kl

    image, row, column, step = to_float(good["image"]), 5, 9, 0.05
    slopes = []
    for channel in range(3):
        up = negative_elbo(image.at[:, row, column, channel].add(step))
        down = negative_elbo(image.at[:, row, column, channel].add(-step))
        slopes.append(np.abs(up - down) / (2 * step))
    score_map = jax.jit(method.predict)(state, good)["score_map"]
    expected = SIZE * SIZE * np.mean(slopes, axis=0)
    np.testing.assert_allclose(score_map[:, row, column], expected, rtol=0.1, atol=1e-3)


def test_the_weight_of_the_divergence_warms_up(trained):
    config, _, _, metrics = trained("vae")
    metrics, warmup = metrics[0], config.method.kl_warmup_steps
    weight = config.method.kl_weight * np.minimum(np.arange(80) / warmup, 1)
    np.testing.assert_allclose(
        metrics["loss"], metrics["l2"] + weight * metrics["kl"], rtol=1e-4, atol=1e-7
    )


def test_the_consistent_loss_is_a_mean_of_pixels_and_codes(trained):
    config, _, _, metrics = trained("constrained_autoencoder")
    share, metrics = config.method.consistency, metrics[0]
    assert 0 < share < 1
    expected = (1 - share) * metrics["l2"] + share * metrics["consistency"]
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        ("autoencoder", "losses", (), "method.losses is empty"),
        ("autoencoder", "residual", "l3", "unknown method.residual 'l3'"),
        ("autoencoder", "consistency", 1.5, r"method.consistency is 1.5: it must lie in \[0, 1\]"),
        ("denoising_autoencoder", "consistency", 0.5, "method.model with a code 'unet'"),
        ("vae", "model", "unet", "unknown method.model 'unet': choose one of bergmann"),
        ("vae", "score", "median", "unknown method.score 'median'"),
        ("vae", "kl_weight", -1.0, "method.kl_weight is -1.0"),
        ("ganomaly", "latent_weight", 0.0, "needs a method.latent_weight above 0"),
        ("ganomaly", "discriminator", "patch", "unknown method.discriminator 'patch'"),
        ("ganomaly", "score", "loss", "unknown method.score 'loss'"),
    ],
)
def test_a_method_that_cannot_be_is_named(name, field, value, message):
    config = small_config(name)
    config.method[field] = value
    with pytest.raises(UserError, match=message):
        make_method(config)


def test_a_batch_of_one_that_cannot_be_normalised_is_named(good):
    """On 32x32 images the DCGAN's last maps are 1x1."""
    if jax.device_count() > 1:
        pytest.skip("a batch of one is for one device")
    method = make_method(small_config("vae"))
    one = {key: values[:1] for key, values in good.items()}
    state = jax.eval_shape(method.init, jax.random.PRNGKey(0), one)
    order = shard(np.zeros((1, 1), np.int32), axis=1)
    data = {key: one[key] for key in ("image", "mask", "label")}
    take_steps = parallel_steps(method.phases[0], resident=True)
    with pytest.raises(UserError, match="batch of one on 1x1 maps"):
        jax.eval_shape(take_steps, state, data, order, order, 1)


@pytest.mark.parametrize(("name", "exploding"), [("vae", "kl"), ("srgan", "generator_loss")])
def test_a_loss_that_explodes_stops_the_run_and_is_named(name, exploding, trained, good):
    """The same program as in training, from parameters as a far too high learning rate leaves."""
    _, method, state, _ = trained(name)
    state = state.replace(params=jax.tree.map(lambda leaf: 1e30 * leaf, state.params))
    order = shard(np.tile(good["index"], (80, 1)), axis=1)
    data = {key: good[key] for key in ("image", "mask", "label")}
    _, metrics = parallel_steps(method.phases[0], resident=True)(state, data, order, order, 1)
    reporter = Reporter([], len(good["image"]), 80, 100)
    reporter.add(1, metrics, 1)
    with pytest.raises(UserError, match=f"{exploding}.* not finite at step 1"):
        reporter.check(1)
