"""Pictures and tables: what they hold, not how they look."""

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from defect_jax import visualize
from defect_jax.data import synthetic


def make_example(index: int, native: tuple[int, int], reconstruction: bool) -> dict:
    image, mask = synthetic.draw(0, index, "metal", "spot", (32, 48))
    rng = np.random.default_rng(index)
    example = {
        "image": image,
        "mask": np.asarray(Image.fromarray(mask).resize(native[::-1])),
        "score_map": rng.uniform(0, 1 + index, native).astype(np.float32),
        "score": float(index),
        "label": 1,
        "defect_type": "spot",
        "filename": f"test/spot/{index:03}.png",
    }
    return example | ({"reconstruction": image / 255} if reconstruction else {})


def titles(figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text)]


def picture_axes(figure) -> list:
    return [axes for axes in figure.axes if axes.images]


@pytest.mark.parametrize(
    ("reconstruction", "threshold", "columns"),
    [(True, 0.5, 5), (False, 0.5, 4), (True, None, 4), (False, None, 3)],
)
def test_a_sheet_has_a_row_an_example_and_only_columns_that_there_are(
    reconstruction, threshold, columns
):
    examples = [make_example(n, (64, 96), reconstruction) for n in range(3)]
    figure = visualize.overlay_sheet(examples, threshold, (0.0, 2.0))
    assert len(picture_axes(figure)) >= 3 * columns
    words = titles(figure)
    assert ("reconstruction" in words) == reconstruction
    assert ("score map > 0.5" in words) == (threshold is not None)
    for example in examples:
        assert any(example["filename"] in word and "spot" in word for word in words)


def test_all_score_maps_share_one_scale():
    examples = [make_example(n, (32, 48), False) for n in range(3)]
    figure = visualize.overlay_sheet(examples, None, (0.25, 1.75))
    maps = [
        picture
        for axes in figure.axes
        for picture in axes.images
        if picture.get_cmap().name == visualize.SCORE_COLOURS
    ]
    assert len(maps) >= 3 and {picture.get_clim() for picture in maps} == {(0.25, 1.75)}


def test_images_of_unequal_size_and_grey_ones_share_a_sheet():
    grey = make_example(1, (46, 113), False)
    grey["image"] = grey["image"][..., :1]
    figure = visualize.overlay_sheet([make_example(0, (64, 64), False), grey], 0.5, (0.0, 1.0))
    assert visualize.to_array(figure).std() > 5


def test_a_constant_score_map_is_no_error():
    example = make_example(0, (32, 48), False) | {"score_map": np.zeros((32, 48), np.float32)}
    assert visualize.to_array(visualize.overlay_sheet([example], 0.0, (0.0, 0.0))).std() > 5


def test_curves_name_their_areas_and_missing_ones_are_said_to_be():
    line = (np.linspace(0, 1, 5), np.linspace(0, 1, 5) ** 0.5)
    values = {"pixel_auroc": 0.8754, "aupro_30": 0.6213, "image_auroc": None}
    figure = visualize.curves({"pixel_roc": line, "pro": line}, values)
    words = " ".join(titles(figure))
    assert len(figure.axes) == 3
    assert "0.875" in words and "0.621" in words and "not available" in words


def test_histogram_counts_every_image_and_shows_the_threshold():
    figure = visualize.score_histogram(np.arange(10.0), np.array([0] * 4 + [1] * 6), 3.5)
    words = " ".join(titles(figure))
    assert "good (4)" in words and "defective (6)" in words and "threshold 3.5" in words
    alone = " ".join(titles(visualize.score_histogram(np.arange(3.0), np.ones(3), None)))
    assert "good" not in alone and "threshold" not in alone


def test_training_curves_have_a_panel_a_metric():
    rows = [{"step": 1, "loss": 1.0, "rate": 0.0}, {"step": 2, "loss": 0.001}]
    figure = visualize.training_curves(rows)
    scales = {axes.get_title(): axes.get_yscale() for axes in figure.axes}
    assert scales == {"loss": "log", "rate": "linear"}
    assert "no training metrics yet" in titles(visualize.training_curves([]))


def test_table_is_aligned_and_ends_with_the_mean_of_what_is_known():
    rows = {"screw": {"auroc": 0.9, "ap": None}, "metal_plate": {"auroc": 0.5, "ap": 0.25}}
    header, *lines = visualize.results_table(rows, ["auroc", "ap"]).splitlines()
    assert [line.split() for line in lines] == [
        ["screw", "0.900", "–"],  # noqa: RUF001
        ["metal_plate", "0.500", "0.250"],
        ["mean", "0.700", "0.250"],
    ]
    assert len({len(line) for line in (header, *lines)}) == 1
    assert (
        len(visualize.results_table({"one": {"auroc": float("nan")}}, ["auroc"]).split("\n")) == 2
    )


def test_saved_picture_is_the_figure_and_leaves_nothing_else(tmp_path):
    figure = visualize.score_histogram(np.arange(10.0), np.arange(10) % 2, None)
    visualize.save(figure, tmp_path / "a/b.png")
    with Image.open(tmp_path / "a/b.png") as picture:
        np.testing.assert_array_equal(
            np.asarray(picture.convert("RGB")), visualize.to_array(figure)
        )
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.png"]
