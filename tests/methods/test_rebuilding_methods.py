"""Every way of rebuilding an image learns good surfaces and stumbles over a defect."""

import functools
import importlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from defect_jax import run
from defect_jax.errors import UserError
from defect_jax.method import to_float
from defect_jax.methods import adversarial, make_method
from defect_jax.models import make_coder, make_discriminator
from defect_jax.report import Reporter
from defect_jax.train import check_steps, parallel_steps, shard

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
# What makes each config small and quick to train; 80 steps on 32x32 images where nothing is said.
SMALL = {
    "autoencoder": {"size": 128},
    "ssim_net": {},
    "ssim_net_lite": {"size": 64},
    "multiscale_ssim": {},
    "red_net": {"size": 64},
    "dcgan_autoencoder": {},
    "constrained_autoencoder": {},
    "vae": {"kl_weight": 1e-3, "kl_warmup_steps": 40},
    "constrained_vae": {},
    "spatial_vae": {"code_dim": 8},
    "adversarial_autoencoder": {},
    "ganomaly": {},
    "srgan": {},
    "f_anogan": {"encoder_steps": 80, "discriminator_learning_rate": 3e-3},
    "denoising_autoencoder": {"depth": 2, "width": 8},
    "deblurring": {"depth": 2, "width": 8},
    "inpainting": {"depth": 2, "width": 8},
}


def small_config(name):
    config = importlib.import_module(f"configs.mvtec_{name}").get_config()
    small = dict(SMALL[name])
    size = small.pop("size", 32)
    config.data.image_size = (size, size)
    config.augment.lighting_probability = 0.0
    config.method.smoothing = 0.0
    config.optimizer.update(schedule="constant", learning_rate=3e-3)
    config.train.num_steps = 80
    for field, value in {"width": 4, "code_dim": 16}.items():
        if field in config.method:
            config.method[field] = value
    config.method.update(small)
    return config


def draw(name, defective):
    """Eight images of stripes, on defective ones with a patch of grey, the stripes' mean.

    A network that knows nothing yet rebuilds grey, and so the patch better than the stripes. The
    few steps here do not teach f-AnoGAN's players such stripes: it gets faint ones that fade to
    one side, and a bright scratch, which shows that it scores a defect but not that it learned.
    """
    rng = np.random.default_rng(0)
    config = small_config(name)
    size, channels = config.data.image_size[0], config.data.channels
    count = 8 * jax.local_device_count()
    waves = np.sin((np.arange(size) + 0.5) * 8 * np.pi / size)[:, None]
    if name == "f_anogan":
        surface, patch = 20 * waves + np.linspace(60, 140, size)[None], 240
    else:
        surface, patch = 128 + 85 * waves + np.zeros((1, size)), 128
    mask = np.zeros((count, size, size), np.uint8)
    if defective:
        middle, margin = size // 2, size // 16
        mask[:, size // 4 : 3 * size // 4, middle - margin : middle + margin] = 1
    image = np.where(mask == 1, patch, surface)[..., None]
    image = image + rng.normal(0, 4, (*mask.shape, channels))
    return {
        "image": image.clip(0, 255).astype(np.uint8),
        "mask": mask,
        "label": mask.any((1, 2)).astype(np.int32),
        "index": np.arange(count, dtype=np.int32),
        "weight": np.ones(count, np.float32),
    }


@pytest.fixture(scope="module")
def fresh():
    """(name) -> config, method, state before any training; each made once."""

    @functools.cache
    def make(name):
        config = small_config(name)
        method = make_method(config)
        batch = draw(name, defective=False)
        return config, method, jax.jit(method.init)(jax.random.PRNGKey(0), batch)

    return make


@pytest.fixture(scope="module")
def trained(fresh):
    """(name) -> config, method, state, metrics of each phase; each trained once."""
    done = {}

    def train(name):
        if name not in done:
            config, method, state = fresh(name)
            batch = draw(name, defective=False)
            metrics = []
            for phase in method.phases:
                state, values = take_steps(phase, state, batch, phase.num_steps or 80)
                metrics.append(jax.device_get(values))
            done[name] = config, method, state, metrics
        return done[name]

    return train


def take_steps(phase, state, batch, count):
    """All with the same whole batch."""
    order = shard(np.tile(batch["index"], (count, 1)), axis=1)
    data = {key: batch[key] for key in ("image", "mask", "label")}
    return parallel_steps(phase, resident=True)(state, data, order, order, count)


@pytest.fixture(scope="module")
def predicted(fresh, trained):
    """(name) -> predictions on the good batch it was trained on and on the defective one.

    With `untrained`, those of the method before its training.
    """
    done = {}

    def predict(name, untrained=False):
        if name not in done:
            batches = draw(name, defective=False), draw(name, defective=True)
            method = trained(name)[1]
            apply = jax.jit(method.predict)
            done[name] = [
                [jax.device_get(apply(state, batch)) for batch in batches]
                for state in (trained(name)[2], fresh(name)[2])
            ]
        return done[name][untrained]

    return predict


def _finds(good, defective, mask):
    """Whether a defect stands out from its surroundings, from its place when good, in its image."""
    score_map = defective["score_map"]
    there = score_map[mask].mean()
    return (
        there > 2 * score_map[~mask].mean()
        and there > 2 * good["score_map"][mask].mean()
        and defective["score"].min() > good["score"].max()
    )


@pytest.mark.parametrize("name", SMALL)
def test_training_makes_a_defect_score_higher_than_the_good_surface_around_it(name, predicted):
    mask = draw(name, defective=True)["mask"] == 1
    assert _finds(*predicted(name), mask)
    if name != "f_anogan":  # see draw
        assert not _finds(*predicted(name, untrained=True), mask)


@pytest.mark.parametrize("name", SMALL)
def test_predictions_are_what_the_interface_promises(name, predicted):
    image = draw(name, defective=False)["image"]
    prediction, _ = predicted(name)
    assert prediction["score"].shape == image.shape[:1]
    assert prediction["score_map"].shape == image.shape[:3]
    rebuilt = prediction["reconstruction"]
    assert rebuilt.shape == image.shape
    assert rebuilt.min() >= 0 and rebuilt.max() <= 1


@pytest.mark.parametrize("name", SMALL)
def test_a_prediction_depends_on_its_image_alone(name, trained, predicted):
    _, method, state, _ = trained(name)
    batch = draw(name, defective=False)
    turned = {key: values[::-1].copy() for key, values in batch.items()}
    others = jax.jit(method.predict)(state, turned)
    for key, values in predicted(name)[0].items():
        np.testing.assert_allclose(values, others[key][::-1], rtol=1e-4, atol=1e-5, err_msg=key)


def test_every_config_that_rebuilds_is_tried_here():
    names = {path.stem.removeprefix("mvtec_") for path in CONFIGS.glob("mvtec_*.py")}
    assert names == SMALL.keys()


@pytest.mark.parametrize("name", ["ssim_net", "vae", "inpainting"])
def test_gradient_steps_learn_a_batch_by_heart(name, trained):
    losses = trained(name)[3][0]["l2" if name == "vae" else "loss"]
    assert np.isfinite(losses).all() and losses[-1] < 0.35 * losses[0]


def test_adversarial_steps_learn_a_batch_by_heart_and_both_players_play(trained):
    metrics = trained("adversarial_autoencoder")[3][0]
    assert metrics["reconstruction"][-1] < 0.35 * metrics["reconstruction"][0]
    for player in ("generator", "discriminator"):
        assert np.isfinite(metrics[f"{player}_loss"]).all()
        assert (metrics[f"{player}_gradient_norm"] > 0).all()


@pytest.mark.parametrize("name", ["adversarial_autoencoder", "ganomaly", "srgan"])
def test_the_generator_follows_its_losses_by_their_weights(name, trained):
    config, _, _, (metrics,) = trained(name)
    method = config.method
    expected = (
        method.reconstruction_weight * metrics["reconstruction"]
        + method.adversarial_weight * metrics["adversarial"]
        + method.feature_weight * metrics["feature"]
        + method.total_variation_weight * metrics["total_variation"]
        + method.latent_weight * metrics.get("latent", 0.0)
    )
    np.testing.assert_allclose(metrics["generator_loss"], expected, rtol=1e-4)
    np.testing.assert_array_equal(metrics["loss"], metrics["generator_loss"])


def test_f_anogan_trains_two_players_and_then_the_encoder(fresh, trained):
    config, method, state, (gan, encoder) = trained("f_anogan")
    batch = draw("f_anogan", defective=False)
    assert gan["penalty"][-1] < gan["penalty"][0]
    assert encoder["loss"][-10:].mean() < 0.95 * encoder["loss"][0]
    assert state.step == config.train.num_steps + config.method.encoder_steps
    after, _ = take_steps(method.phases[1], state, batch, 1)

    def moved(old, new, player):
        pairs = zip(
            jax.tree.leaves(old.params[player]), jax.tree.leaves(new.params[player]), strict=True
        )
        return any(not np.array_equal(a, b) for a, b in pairs)

    assert all(moved(fresh("f_anogan")[2], state, player) for player in state.params)
    assert moved(state, after, "encoder")
    assert not moved(state, after, "generator") and not moved(state, after, "discriminator")


def test_losses_of_f_anogan_are_put_together_as_in_the_paper(trained):
    config, _, _, (gan, encoder) = trained("f_anogan")
    expected = config.method.penalty_weight * gan["penalty"] - gan["wasserstein"]
    np.testing.assert_allclose(gan["discriminator_loss"], expected, rtol=1e-4, atol=1e-5)
    expected = encoder["reconstruction"] + config.method.feature_weight * encoder["feature"]
    np.testing.assert_allclose(encoder["encoder_loss"], expected, rtol=1e-5)


def test_f_anogan_scores_an_image_by_residual_and_features(trained, predicted):
    config, _, state, _ = trained("f_anogan")
    _, prediction = predicted("f_anogan")
    image = to_float(draw("f_anogan", defective=True)["image"])
    squares = np.mean((image - prediction["reconstruction"]) ** 2, axis=(1, 2, 3))
    critic = make_discriminator(config, "group")
    variables = {"params": state.params["discriminator"]}
    features = jax.jit(lambda x: critic.apply(variables, x, train=False)[1])
    distance = (features(image) - features(prediction["reconstruction"])) ** 2
    expected = squares + config.method.feature_weight * distance.mean((1, 2, 3))
    np.testing.assert_allclose(prediction["score"], expected, rtol=1e-4)


def test_ganomaly_scores_an_image_by_the_distance_of_its_codes(trained, predicted):
    config, _, state, _ = trained("ganomaly")
    _, prediction = predicted("ganomaly")
    params, stats = state.params["generator"], state.batch_stats["generator"]
    coder = make_coder(config)

    @jax.jit
    def encode(params, stats, x):
        return coder.encoder.apply({"params": params, "batch_stats": stats}, x, train=False)

    code = encode(
        params["autoencoder"]["encoder"],
        stats["autoencoder"]["encoder"],
        to_float(draw("ganomaly", defective=True)["image"]),
    )
    again = encode(params["re_encoder"], stats["re_encoder"], prediction["reconstruction"])
    np.testing.assert_allclose(
        prediction["score"], ((code - again) ** 2).mean((1, 2, 3)), rtol=1e-3
    )


def test_scores_of_a_vae(trained):
    """From the mean code, from samples around it, and from the gradient of the ELBO."""
    config, _, state, _ = trained("vae")
    batch = draw("vae", defective=True)
    mask = batch["mask"] == 1
    maps = {}
    for name in ("mean", "samples", "gradient"):
        config.method.score = name
        prediction = jax.jit(make_method(config).predict)(state, batch)
        maps[name] = np.asarray(prediction["score_map"])
    config.method.score = "mean"
    residual = np.mean((to_float(batch["image"]) - prediction["reconstruction"]) ** 2, axis=-1)
    np.testing.assert_allclose(maps["mean"], residual, rtol=1e-4, atol=1e-6)
    assert not np.allclose(maps["samples"], maps["mean"], rtol=1e-3)
    for name, score_map in maps.items():
        factor = 2**0.5 if name == "gradient" else 2  # it goes as a difference, not as its square
        assert score_map[mask].mean() > factor * score_map[~mask].mean(), name


def test_the_gradient_score_is_the_slope_of_the_elbo(trained):
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

    batch = draw("vae", defective=False)
    image, row, column, step = jnp.asarray(to_float(batch["image"])), 5, 9, 0.01
    slopes = []
    for channel in range(3):
        up = negative_elbo(image.at[:, row, column, channel].add(step))
        down = negative_elbo(image.at[:, row, column, channel].add(-step))
        slopes.append(np.abs(up - down) / (2 * step))
    score_map = jax.jit(method.predict)(state, batch)["score_map"]
    expected = 32 * 32 * np.mean(slopes, axis=0)
    # A difference goes astray where a step crosses a kink of the leaky ReLUs, on few images.
    error = np.abs(score_map[:, row, column] / expected - 1)
    assert np.median(error) < 0.05


def test_the_weight_of_the_divergence_warms_up(trained):
    config, _, _, metrics = trained("vae")
    metrics, warmup = metrics[0], config.method.kl_warmup_steps
    weight = config.method.kl_weight * np.minimum(np.arange(80) / warmup, 1)
    np.testing.assert_allclose(
        metrics["loss"], metrics["l2"] + weight * metrics["kl"], rtol=1e-4, atol=1e-7
    )


def test_the_consistent_loss_is_a_mean_of_pixels_and_codes(trained):
    config, _, _, (metrics,) = trained("constrained_autoencoder")
    share = config.method.consistency
    assert 0 < share < 1
    expected = (1 - share) * metrics["l2"] + share * metrics["consistency"]
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


def test_the_consistent_loss_of_a_vae_leaves_the_divergence_alone(trained):
    config, _, _, (metrics,) = trained("constrained_vae")
    method = config.method
    weight = method.kl_weight * np.arange(80) / method.kl_warmup_steps
    expected = (1 - method.consistency) * metrics["l2"] + weight * metrics["kl"]
    expected += method.consistency * metrics["consistency"]
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        ("autoencoder", "losses", (), "method.losses is empty"),
        ("autoencoder", "losses", ("ssim", "ssim"), "'ssim'.*: name each once"),
        ("autoencoder", "smoothing", -1.0, "method.smoothing is -1.0: it must be at least 0"),
        ("autoencoder", "top_fraction", 2.0, "method.top_fraction is 2.0: it must be from 0 to 1"),
        ("autoencoder", "ssim_windows", (4,), r"method.ssim_windows is \(4,\): name odd sizes"),
        ("autoencoder", "code_dim", 0, "method.code_dim is 0: it must be at least 1"),
        ("autoencoder", "residual", "l3", "unknown method.residual 'l3'"),
        ("autoencoder", "consistency", 1.5, r"method.consistency is 1.5: it must lie in \[0, 1\]"),
        ("denoising_autoencoder", "consistency", 0.5, "method.model with a code 'unet'"),
        ("vae", "model", "unet", "unknown method.model 'unet': choose one of bergmann"),
        ("vae", "score", "median", "unknown method.score 'median'"),
        ("vae", "kl_weight", -1.0, "method.kl_weight is -1.0"),
        ("f_anogan", "model", "ssim_net", "method.model with a vector for a code 'ssim_net'"),
        ("f_anogan", "encoder_steps", 0, "method.encoder_steps is 0: it must be at least 1"),
        ("ganomaly", "feature_weight", float("nan"), "weights of the losses .*nan"),
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


def test_a_batch_of_one_that_cannot_be_normalised_is_named_before_anything_is_written(
    mvtec_root, prepared, tmp_path
):
    """On 32x32 images the DCGAN's last maps are 1x1."""
    if jax.device_count() > 1:
        pytest.skip("a batch of one is for one device")
    config = small_config("vae")
    config.data.update(root=str(mvtec_root), category="part", cache_dir=prepared)
    config.train.batch_size = 1
    with pytest.raises(UserError, match="batch of one on 1x1 maps"):
        run.open_run(config, tmp_path / "run", "train")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "exploding"), [("vae", "kl"), ("srgan", "generator_loss")])
def test_a_loss_that_explodes_stops_the_run_and_is_named(name, exploding, trained):
    """The same program as in training, from parameters as a far too high learning rate leaves."""
    config, method, state, _ = trained(name)
    state = state.replace(params=jax.tree.map(lambda leaf: 1e30 * leaf, state.params))
    _, metrics = take_steps(method.phases[0], state, draw(name, defective=False), 80)
    reporter = Reporter([], config.train.batch_size, 100, 100, [])
    reporter.add(80, metrics, 80)
    with pytest.raises(UserError, match=f"{exploding}.* not finite at step 1"):
        reporter.check(80)


def test_features_of_a_backbone_take_the_place_of_the_discriminators(tmp_path, monkeypatch):
    """Here a backbone of constant features, so the feature loss is that of equal images, 0."""
    config = small_config("srgan")
    config.method.backbone_weights = str(tmp_path / "none.npz")
    with pytest.raises(UserError, match=r"none\.npz is no file"):
        check_steps(config, make_method(config))
    monkeypatch.setattr(adversarial, "load_vgg16", lambda path: path)
    monkeypatch.setattr(
        adversarial, "vgg16_features", lambda path, image: jnp.ones((len(image), 1))
    )
    method, batch = make_method(config), draw("srgan", defective=False)
    state = jax.jit(method.init)(jax.random.PRNGKey(0), batch)
    _, metrics = take_steps(method.phases[0], state, batch, 1)
    assert metrics["feature"][0] == 0 and metrics["adversarial"][0] > 0
