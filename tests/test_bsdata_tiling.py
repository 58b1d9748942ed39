"""Tiles against whole images: nothing differs where a network reads single pixels."""

import numpy as np
import pytest

from configs import bsdata_residual_unet, bsdata_unet
from defect_jax import checkpoint
from experiments.bsdata import ensemble, latency, tiling

SIZE = (330, 500)


def of_pixels(batch):
    """Log-odds that depend on each pixel alone."""
    return {"score_map": batch["image"][..., 0].astype(np.float32) / 64 - 2}


def of_pieces(batch):
    """The same, and a brighter piece is more likely a pit altogether."""
    mean = batch["image"].mean((1, 2, 3), dtype=np.float32) / 64 - 2
    return {"score_map": of_pixels(batch)["score_map"] + mean[:, None, None]}


@pytest.fixture(scope="module")
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
    predict_all = lambda batch: predict(batch) | {"score": np.zeros(len(batch["image"]))}  # noqa: E731
    whole, *tiled = tiling.score_maps(config, image, predict_all)
    assert whole.shape == SIZE and len(tiled) == len(tiling.WAYS)
    pieces = predict({"image": np.pad(image.image, ((0, 0), (0, 22), (0, 12), (0, 0)), "edge")})
    np.testing.assert_allclose(whole, pieces["score_map"][0, : SIZE[0], : SIZE[1]], rtol=1e-6)
    differences = [tiling.Difference().add(whole, one) for one in tiled]
    assert all((one.largest < 1e-6) == same for one in differences)
    assert all((one.shared == one.either) == same for one in differences)


def test_differences_are_added_up_over_images():
    """log-odds of log 3 are a probability of 3/4."""
    whole, tiled = np.array([[0.0, np.log(3)]]), np.array([[0.0, -np.log(3)]])
    one = tiling.Difference().add(whole, tiled).add(np.ones((1, 2)), np.ones((1, 2)))
    assert one == tiling.Difference(4, pytest.approx(0.5), pytest.approx(0.5), 2, 3)
    table = tiling.as_markdown([one] * len(tiling.WAYS))
    assert table.count("| 66.7 | 1.2e-01 | 0.50 |") == len(tiling.WAYS)


def test_a_run_on_whole_images_is_refused(monkeypatch, capsys):
    entry = ensemble.Entry("runs/whole", bsdata_unet.get_config())
    monkeypatch.setattr(ensemble, "read_runs", lambda *_, **__: [entry])
    monkeypatch.setattr(checkpoint, "load_run", lambda _: pytest.fail("loaded"))
    with pytest.raises(SystemExit, match=r"error: runs/whole takes its images whole: give a run"):
        tiling.main(["--runs", "runs/whole"])
    with pytest.raises(SystemExit, match=r"error: --images is 0"):
        tiling.main(["--runs", "runs/whole", "--images=0"])
