"""Tiles against whole images: nothing differs where a network reads single pixels."""

import types

import numpy as np
import pytest

from configs import bsdata_residual_unet, bsdata_unet
from defect_jax import checkpoint
from defect_jax.data import datasets
from defect_jax.data.examples import concatenate
from experiments.bsdata import ensemble, latency, tiling

SIZE = (330, 500)
WHOLE = (352, 512)  # continued to multiples of 32


def of_pixels(batch):
    """Log-odds that depend on each pixel alone."""
    score_map = batch["image"][..., 0].astype(np.float32) / 64 - 2
    return {"score": score_map.max((1, 2)), "score_map": score_map}


def of_pieces(batch):
    """The same, and in a brighter piece all is more likely a pit."""
    mean = batch["image"].mean((1, 2, 3), dtype=np.float32) / 64 - 2
    predicted = of_pixels(batch)
    return predicted | {"score_map": predicted["score_map"] + mean[:, None, None]}


@pytest.fixture
def config():
    config = bsdata_residual_unet.get_config()
    config.data.frame_height = 0
    return config


@pytest.fixture(scope="module")
def image():
    """Noise that gets brighter to the right."""
    image = latency.draw_image(SIZE, 3)
    image.image[0] = image.image[0] // 2 + np.linspace(0, 127, SIZE[1], dtype=np.uint8)[:, None]
    return image


@pytest.mark.parametrize(("predict", "same"), [(of_pixels, True), (of_pieces, False)])
def test_tiles_differ_by_what_a_network_reads_beyond_them(config, image, predict, same):
    whole, *tiled = tiling.score_maps(config, image, predict)
    assert whole.shape == SIZE and len(tiled) == len(tiling.TILINGS)
    below, right = (all_ - seen for all_, seen in zip(WHOLE, SIZE, strict=True))
    pieces = predict(
        {"image": np.pad(image.image, ((0, 0), (0, below), (0, right), (0, 0)), "edge")}
    )
    np.testing.assert_allclose(whole, pieces["score_map"][0, : SIZE[0], : SIZE[1]], rtol=1e-6)
    differences = [tiling.Difference().add(whole, merged) for merged in tiled]
    assert all((one.largest < 1e-6) == same for one in differences)
    assert all((one.intersection == one.union) == same for one in differences)


def test_each_map_is_of_its_own_tiles_and_overlap(config, image, monkeypatch):
    before = config.to_dict()
    seen = []

    def predict_tiles(config, _, predict):
        assert predict is of_pixels
        seen.append((tuple(config.eval.tile), config.eval.overlap))
        yield None, {"score_map": np.full(WHOLE, len(seen))}

    monkeypatch.setattr(tiling, "predict_tiles", predict_tiles)
    maps = list(tiling.score_maps(config, image, of_pixels))
    assert seen == [(WHOLE, 0), *tiling.TILINGS]
    for number, log_odds in enumerate(maps, start=1):
        np.testing.assert_array_equal(log_odds, np.full(SIZE, number))
    assert config.to_dict() == before


def test_images_are_taken_evenly_and_added_up(config, image, monkeypatch):
    """Of five the first, the third and the last; one view of each."""
    taken = []
    entry = ensemble.Entry("runs/crops", config)
    expected = [tiling.Difference(pixels=number) for number in range(len(tiling.TILINGS))]

    def read_runs(folders, root, flip_average):
        assert (folders, root, flip_average) == (["runs/crops"], "here", False)
        return [entry]

    def score_maps(config, one, predict):
        taken.extend(one.filename)
        maps = np.arange(1.0 + len(tiling.TILINGS))
        yield from maps[:, None, None]  # whole 0, then tiles 1, 2, ...

    five = concatenate([image] * 5)
    five.filename[:] = list("abcde")
    monkeypatch.setattr(ensemble, "read_runs", read_runs)
    monkeypatch.setattr(checkpoint, "load_run", lambda _: types.SimpleNamespace(state={}))
    monkeypatch.setattr(datasets, "load_split", lambda _, split: {"test": five}[split])
    monkeypatch.setattr(tiling, "score_maps", score_maps)
    found = tiling.compare("runs/crops", "here", 3)
    assert taken == ["a", "c", "e"]
    distance = 1 / (1 + np.exp(-np.arange(1, 1 + len(expected)))) - 0.5
    for difference, one in zip(found, distance, strict=True):
        assert difference == tiling.Difference(3, pytest.approx(3 * one), pytest.approx(one), 0, 3)
    taken.clear()
    tiling.compare("runs/crops", "here", 9)
    assert taken == list("abcde")
    monkeypatch.setattr(datasets, "load_split", lambda *_: five.take(np.arange(0)))
    with pytest.raises(SystemExit, match="error: runs/crops has no test images in "):
        monkeypatch.setattr(ensemble, "read_runs", lambda *_, **__: [entry])
        tiling.main(["--runs", "runs/crops"])


def test_differences_are_added_up_over_pixels():
    """log-odds of log 3 are a probability of 3/4."""
    whole, tiled = np.array([[0.0, np.log(3)]]), np.array([[0.0, -np.log(3)]])
    one = tiling.Difference().add(whole, tiled).add(np.ones((1, 2)), np.ones((1, 2)))
    assert one == tiling.Difference(4, pytest.approx(0.5), pytest.approx(0.5), 2, 3)
    broken = one.add(np.full((1, 2), np.nan), np.ones((1, 2)))
    assert np.isnan([broken.total, broken.largest]).all()


def test_the_table_has_a_row_for_each_tiling():
    rows = [tiling.Difference(10, n, n / 10, n, 10) for n in range(len(tiling.TILINGS))]
    table = tiling.as_markdown([*rows[:-1], tiling.Difference(10)]).split("\n")
    assert table[2] == "| 192x192 | 64 | 0.0 | 0.0e+00 | 0.00 |"
    assert table[5] == "| 192x384 | 128 | 30.0 | 3.0e-01 | 0.30 |"
    assert table[7] == "| 256x384 | 128 | none found | 0.0e+00 | 0.00 |"


def test_a_run_on_whole_images_is_refused(monkeypatch):
    entry = ensemble.Entry("runs/whole", bsdata_unet.get_config())
    monkeypatch.setattr(ensemble, "read_runs", lambda *_, **__: [entry])
    monkeypatch.setattr(checkpoint, "load_run", lambda _: pytest.fail("loaded"))
    with pytest.raises(SystemExit, match=r"error: runs/whole takes its images whole: give a run"):
        tiling.main(["--runs", "runs/whole"])
    with pytest.raises(SystemExit, match=r"error: --images is 0"):
        tiling.main(["--runs", "runs/whole", "--images=0"])
