"""Prediction by tiles: as of the whole image, each tile once; and a run on crops end to end."""

import csv
import functools
import io

import jax
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from configs import bsdata_adversarial, bsdata_residual_unet, mvtec_autoencoder
from defect_jax import checkpoint, mining, report, run
from defect_jax.data import datasets
from defect_jax.data.examples import Examples
from defect_jax.errors import UserError
from defect_jax.evaluate import evaluate, predictions
from defect_jax.models import unet
from defect_jax.train import train


def make_config(tile, overlap, batch_size=4):
    config = bsdata_residual_unet.get_config()
    config.data.frame_height = 0
    config.eval.update(tile=tile, overlap=overlap, batch_size=batch_size, bootstrap_samples=10)
    return config


def blocks(size, seed=0):
    """An image of black and white blocks, the worst that a border can cut."""
    coarse = np.random.default_rng(seed).integers(0, 2, (-(-size[0] // 6), -(-size[1] // 6), 3))
    image = np.kron(255 * coarse, np.ones((6, 6, 1), int))
    return image[: size[0], : size[1]].astype(np.uint8)


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def make_examples(images):
    count = len(images)
    files = np.empty(count, object)
    files[:] = [png(image) for image in images]
    no_masks = np.full(count, b"", object)
    names = np.array([f"{number}.png" for number in range(count)])
    return Examples(files, no_masks, np.zeros(count, np.int32), np.full(count, "good"), names)


def box_mean(image, radius):
    """The mean over the box of 2 radius + 1 around each pixel, borders repeated: [..., h, w]."""
    size = 2 * radius + 1
    grey = image.mean(axis=-1)
    return ndimage.uniform_filter(grey, (size, size), mode="nearest", axes=(-2, -1))


def reading_around(radius):
    """A method that reads so many pixels around each."""

    def predict(batch):
        score_map = box_mean(batch["image"], radius).astype(np.float32)
        return {
            "score": score_map.max(axis=(1, 2)),
            "score_map": score_map,
            "mask_logits": np.stack([0 * score_map, score_map - 128], axis=-1),
        }

    return predict


# The weight of a tile that sees less than the whole image, times the largest value of a map.
TOLERANCE = 1e-6 * 4 * 255


@pytest.mark.parametrize(
    ("tile", "overlap", "radius"),
    [((72, 72), 16, 4), ((96, 120), 24, 6), ((64, 80), 32, 8), ((40, 48), 8, 2), ((64, 44), 12, 1)],
)
def test_tiles_give_the_map_of_the_whole_image(tile, overlap, radius):
    """For a method that reads a quarter of the overlap around each pixel."""
    image = blocks((128, 176))
    examples = make_examples([image])
    (whole,) = predictions(make_config((128, 176), 0), examples, reading_around(radius))
    np.testing.assert_allclose(whole["score_map"], box_mean(image, radius), atol=1e-4)
    (tiled,) = predictions(make_config(tile, overlap), examples, reading_around(radius))
    np.testing.assert_allclose(tiled["score_map"], whole["score_map"], atol=TOLERANCE)
    np.testing.assert_allclose(tiled["score"], whole["score"], atol=TOLERANCE)
    (far,) = predictions(make_config(tile, overlap), examples, reading_around(2 * radius + 4))
    error = np.abs(far["score_map"] - box_mean(image, 2 * radius + 4))
    assert error.max() > 10 * TOLERANCE


def test_tiles_that_share_almost_all_give_the_map_of_the_whole_image():
    """Where the second begins, the first still lies at the border of the image."""
    image = blocks((224, 256))
    config = make_config((192, 192), 160)
    (tiled,) = predictions(config, make_examples([image]), reading_around(12))
    np.testing.assert_allclose(tiled["score_map"], box_mean(image, 12), atol=TOLERANCE)


def test_tiles_that_hardly_overlap_leave_seams():
    """So the tolerance of those that do is no empty promise."""
    image = blocks((64, 88))
    (apart,) = predictions(make_config((32, 44), 0), make_examples([image]), reading_around(3))
    error = np.abs(apart["score_map"] - box_mean(image, 3))
    assert error.max() > 20


SIZES = [(20, 30), (128, 176), (72, 84), (128, 25), (23, 176)]


@pytest.fixture(scope="module")
def several():
    """Images of several sizes, some smaller than a tile in one direction or both."""
    images = [blocks(size, seed) for seed, size in enumerate(SIZES)]
    return images, make_examples(images)


def test_a_split_may_hold_images_of_any_size(several):
    images, examples = several
    tile, overlap, radius = (72, 84), 16, 3
    found = predictions(make_config(tile, overlap), examples, reading_around(radius))
    for image, example, size in zip(images, found, SIZES, strict=True):
        assert example["score_map"].shape == example["class_map"].shape == size
        assert example["mask"].shape == size
        np.testing.assert_array_equal(example["image"], image)  # without what continues it
        np.testing.assert_allclose(
            example["score_map"],
            box_mean(image, radius),
            atol=TOLERANCE,
        )


def test_frames_of_several_resolutions_are_seen_at_one_height():
    """And the map of each has the size of its file."""
    rows, columns = np.indices((96, 132))
    small = np.stack([rows, columns, rows + columns], -1).astype(np.uint8)
    large = small.repeat(2, 0).repeat(2, 1)
    config = make_config((72, 84), 16)
    config.data.frame_height = 96
    seen_small, seen_large = predictions(config, make_examples([small, large]), reading_around(3))
    np.testing.assert_allclose(seen_large["image"], seen_small["image"], atol=1)
    assert seen_large["score_map"].shape == seen_large["class_map"].shape == (192, 264)
    twice = Image.fromarray(seen_small["score_map"]).resize((264, 192), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(seen_large["score_map"], np.asarray(twice), atol=1)


@pytest.mark.parametrize("batch_size", [2, 4, 6, 16])
def test_each_tile_is_predicted_once_and_counts_once(several, batch_size):
    """What fills up the last batch of an image does not reach its score nor its map."""
    images, examples = several
    tile, overlap = (72, 84), 16
    batch_size *= jax.local_device_count()
    seen = []

    def predict(batch):
        assert batch["image"].shape == (batch_size, *tile, 3)
        seen.append(batch)
        first = np.r_[True, np.diff(batch["index"]) > 0]
        # A copy, and only a copy, would give a map and a score of a million.
        wrong = np.where(first, 0, 1e6)
        score_map = batch["image"].mean(axis=-1) + wrong[:, None, None]
        return {"score": wrong, "score_map": score_map}

    config = make_config(tile, overlap, batch_size)
    found = list(predictions(config, examples, predict))
    counts = [1, 3 * 3, 1, 3, 3]
    assert len(seen) == sum(-(-count // batch_size) for count in counts)
    for image, example, count in zip(images, found, counts, strict=True):
        np.testing.assert_allclose(example["score_map"], image.mean(axis=-1), atol=1e-4)
        batches = [seen.pop(0) for _ in range(-(-count // batch_size))]
        index = np.concatenate([batch["index"] for batch in batches])
        assert index[:count].tolist() == list(range(count)) and set(index) == set(range(count))
        assert example["score"] == pytest.approx(image.mean(axis=-1).max())


@pytest.mark.parametrize("top_fraction", [0.0, 0.1])
def test_the_score_is_that_of_the_merged_map(top_fraction):
    """Neither what continues the image nor a tile's border, which merging drops, has a part."""
    image = blocks((100, 150)) // 4

    def predict(batch):
        prediction = reading_around(0)(batch)
        prediction["score_map"][:, [0, -1]] += 255 * (batch["index"] == 1)[:, None, None]
        prediction["score_map"][:, :, -1] *= 1 + (batch["index"] == 2)[:, None]
        return prediction

    config = make_config((64, 96), 32)
    config.method.top_fraction = top_fraction
    (example,) = predictions(config, make_examples([image]), predict)
    highest = np.sort(example["score_map"], axis=None)[-max(1, round(top_fraction * 15000)) :]
    assert example["score"] == pytest.approx(highest.mean(), rel=1e-5)


@pytest.fixture(scope="module")
def network():
    """A U-Net that reads 22 pixels around, and what it predicts for a whole image."""
    module = unet.UNet(width=4, depth=2, normalization="batch")
    init = functools.partial(module.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32))
    rng = np.random.default_rng(0)  # to compile what draws parameters takes longer than all else
    variables = {
        "params": jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape), shapes["params"]),
        "batch_stats": jax.tree.map(lambda leaf: np.ones(leaf.shape), shapes["batch_stats"]),
    }
    apply = jax.jit(lambda x: module.apply(variables, x / 255.0, False)[..., 1])

    def predict(batch):
        score_map = np.asarray(apply(batch["image"].astype(np.float32)))
        return {"score": score_map.max((1, 2)), "score_map": score_map}

    examples = make_examples([blocks((160, 300))])
    (whole,) = predictions(make_config((160, 320), 0, 1), examples, predict)
    return examples, predict, whole["score_map"]


@pytest.mark.parametrize(
    ("tile", "overlap"),
    [((160, 160), 100), ((120, 124), 88), ((124, 200), 90), ((160, 132), 100)],
)
def test_tiles_of_a_network_are_halved_where_the_image_is(network, tile, overlap):
    """So tiles of any size the network takes give the same map, if they share 88 pixels or more."""
    examples, predict, whole = network
    (tiled,) = predictions(make_config(tile, overlap, 1), examples, predict)
    # The tiles end elsewhere than the whole does: what continues the image is not compared.
    error = np.abs(tiled["score_map"] - whole)[:130, :270]
    assert error.max() < 1e-4 * whole.std()


def logits_of(image, num_classes):
    """Logits that differ from pixel to pixel, of the background 0."""
    classes = (image[..., : num_classes - 1].astype(np.float32) - 128) / 16
    classes += 0.01 * np.arange(num_classes - 1)
    return np.concatenate([0 * classes[..., :1], classes], axis=-1)


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("least", [-2.0, 0.0, 1.5])
def test_the_class_map_obeys_the_least_log_odds(num_classes, least):
    image = np.random.default_rng(0).integers(0, 256, (64, 88, 3)).astype(np.uint8)

    def predict(batch):
        logits = logits_of(batch["image"], num_classes)
        return {"score": logits.max((1, 2, 3)), "score_map": logits[..., 1], "mask_logits": logits}

    config = make_config((64, 64), 16)
    config.eval.min_log_odds = least
    (example,) = predictions(config, make_examples([image]), predict)
    power = np.exp(logits_of(image, num_classes).astype(np.float64))
    probability = power / power.sum(axis=-1, keepdims=True)
    background = probability[..., 0]
    defective = background < 1 / (1 + np.exp(least))
    expected = np.where(defective, 1 + probability[..., 1:].argmax(axis=-1), 0)
    clear = np.abs(np.log(1 / background - 1) - least) > 1e-3
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(example["class_map"][clear], expected[clear])
    assert set(np.unique(expected)) == set(range(num_classes))
    # Two defects that are likelier together than the background, which is likelier than each.
    outvoted = (probability.argmax(axis=-1) == 0) & (expected > 0)
    assert outvoted.any() == (least < 0 or (least < 0.5 and num_classes == 3))


SIZE = (48, 72)


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """An .npz file of steel larger than the crops: 6 good frames and 6 with a pit, 2 of each."""
    path = tmp_path_factory.mktemp("frames") / "frames.npz"
    rng = np.random.default_rng(0)
    content = {}
    for split, pits in {"train": [0] * 6 + [1] * 6, "test": [0, 0, 1, 1]}.items():
        mask = np.zeros((len(pits), *SIZE), np.uint8)
        for one, pit in zip(mask, pits, strict=True):
            row, column = rng.integers(8, (32, 52))
            one[row : row + 8, column : column + 12] = pit
        image = rng.normal(120, 10, (*mask.shape, 3)) - 90 * mask[..., None]
        content |= {f"{split}_image": image.clip(0, 255).astype(np.uint8), f"{split}_mask": mask}
    np.savez(path, **content)
    return path


@pytest.fixture(scope="module")
def small(shrink, frames, compile_quickly):
    """Makes a config one of crops of `frames`."""

    def small(config):
        config = shrink(config)
        config.data.update(name="arrays", root=str(frames), category="", fit="crop")
        config.data.image_size = (32, 32)
        config.eval.tile, config.eval.overlap = (48, 64), 8
        config.train.update(num_steps=4, checkpoint_every=2, log_every=2)
        return config

    return small


@pytest.fixture(scope="module")
def config(small):
    """Two players on crops of shrunk frames, around pits and mistakes, and pits pasted on some."""
    config = small(bsdata_adversarial.get_config())
    config.data.update(frame_height=40, hard_share=0.3)
    config.train.update(mine_every=2, checkpoint_every=1)
    config.method.supervised_levels = 2
    config.augment.paste_size = 20
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mining, "LOG_ODDS", -10.0)  # so that any network makes mistakes
        yield config


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    opened = run.open_run(config, workdir, "train")
    return workdir, train(opened, workdir), evaluate(opened, workdir)


def test_a_run_on_crops_leaves_all_its_files(config, finished):
    workdir, _, results = finished
    for name in ("metrics.json", "images.csv", "defects.csv", "overlays/sheet.png", "curves.png"):
        assert (workdir / "eval/test" / name).stat().st_size > 0
    for name in ("calibration.json", "parameters.txt", "training.png", "metrics.jsonl"):
        assert (workdir / name).stat().st_size > 0
    assert {"iou", "dice", "pixel_auroc", "object_f1", "calibrated"} <= results.keys()
    with (workdir / "eval/test/images.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    masks = datasets.load_split(config, "test").mask
    assert [int(row["defect_pixels"]) for row in rows] == masks.sum(axis=(1, 2)).tolist()
    loaded = checkpoint.load_run(workdir)
    image = np.zeros((1, 40, 48, 3), np.uint8)  # neither a crop's size nor a tile's
    assert loaded.predict({"image": image})["score_map"].shape == (1, 40, 48)
    with pytest.raises(UserError, match=r"uint8 \[B, 40, 64, 3\], found uint8 \[1, 48, 64, 3\]"):
        loaded.predict({"image": np.zeros((1, 48, 64, 3), np.uint8)})


def test_a_run_on_crops_ends_in_the_same_bits_when_resumed(config, finished, tmp_path):
    """Its crops, mistakes, pastes and random views come again, in both players."""
    add = report.Reporter.add

    def add_or_die(self, step, metrics, count):
        if step > 3:  # a step after its mistakes were looked for
            raise RuntimeError("the machine died")
        add(self, step, metrics, count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report.Reporter, "add", add_or_die)
        with pytest.raises(RuntimeError, match="the machine died"):
            train(run.open_run(config, tmp_path, "train"), tmp_path)
    assert checkpoint.steps(tmp_path)[-1] == 3
    mistakes = tmp_path / "mistakes/2.npy"
    content = mistakes.read_bytes()
    assert len(np.load(mistakes))  # else it would not matter that they come again
    mistakes.unlink()
    with pytest.raises(UserError, match=r"mistakes/2\.npy is missing: .*--step=2"):
        train(run.open_run(config, tmp_path, "train"), tmp_path)
    mistakes.write_bytes(content)
    resumed = train(run.open_run(config, tmp_path, "train"), tmp_path)
    jax.tree.map(np.testing.assert_array_equal, resumed, finished[1])


def test_an_autoencoder_learns_from_crops_of_good_images(small, frames, tmp_path):
    """Without a defect to crop around, and rebuilds whole images by tiles."""
    config = small(mvtec_autoencoder.get_config())
    config.method.update(model="ssim_net", code_dim=4)
    config.eval.tile = (64, 64)
    config.data.root = str(tmp_path / "good.npz")
    with np.load(frames) as file:
        np.savez(config.data.root, **{**file, "train_image": file["train_image"][:6],
                                      "train_mask": file["train_mask"][:6]})  # fmt: skip
    workdir = tmp_path / "run"
    config = run.open_run(config, workdir, "train")
    train(config, workdir)
    assert 0 <= evaluate(config, workdir)["image_auroc"] <= 1
    assert not (workdir / "eval/test/defects.csv").exists()


@pytest.mark.parametrize("overlap", [-1, 17])
def test_a_wrong_overlap_is_told_before_training(config, overlap):
    config = config.copy_and_resolve_references()
    config.eval.overlap = overlap
    with pytest.raises(UserError, match=rf"eval\.overlap is {overlap} for tiles of 48x64"):
        run.check(config)
