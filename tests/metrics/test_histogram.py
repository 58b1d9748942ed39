import functools

import numpy as np
import pytest
from scipy import ndimage
from sklearn import metrics as sklearn_metrics

from defect_jax.errors import UserError
from defect_jax.metrics import histogram
from defect_jax.metrics.anomaly import pixel_counts
from defect_jax.metrics.histogram import ScoreHistogram

LARGE = 2**17


def slow_aupro(maps, masks, max_fpr):
    """The definition, one threshold and one region after the other."""
    normal = np.concatenate([s[m == 0] for s, m in zip(maps, masks, strict=True)])
    regions = []
    for scores, mask in zip(maps, masks, strict=True):
        labels, number = ndimage.label(mask, np.ones((3, 3)))
        regions += [scores[labels == i] for i in range(1, number + 1)]
    levels = np.unique(np.concatenate([s.ravel() for s in maps]))[::-1]
    fpr, pro = [0.0], [0.0]
    for level in levels:
        fpr.append(np.mean(normal >= level))
        pro.append(np.mean([np.mean(region >= level) for region in regions]))
    area = 0.0
    for x0, x1, y0, y1 in zip(fpr, fpr[1:], pro, pro[1:], strict=False):
        if x1 <= max_fpr:
            area += (x1 - x0) * (y0 + y1) / 2
        elif x0 < max_fpr:
            end = y0 + (y1 - y0) * (max_fpr - x0) / (x1 - x0)
            area += (max_fpr - x0) * (y0 + end) / 2
    return area / max_fpr


def labelled(scores, labels, capacity=LARGE):
    labels = np.asarray(labels)
    counts = np.stack([labels == 0, labels == 1, np.zeros_like(labels)], axis=1).astype(float)
    return ScoreHistogram.from_scores(scores, counts, capacity)


def table(maps, masks, capacity=LARGE):
    h = None
    for scores, mask in zip(maps, masks, strict=True):
        one = ScoreHistogram.from_scores(scores.ravel(), pixel_counts(scores, mask), capacity)
        h = one if h is None else histogram.merge(h, one)
    return h


def rectangles(rng, shape, number):
    mask = np.zeros(shape, bool)
    for _ in range(number):
        y, x = rng.integers(0, shape[0] - 5), rng.integers(0, shape[1] - 5)
        mask[y : y + rng.integers(1, 6), x : x + rng.integers(1, 6)] = True
    return mask


def images(seed, levels=None):
    """Four images of unequal size: good, several regions, one pixel, touching at a corner."""
    rng = np.random.default_rng(seed)
    masks = [np.zeros((20, 30), bool), rectangles(rng, (32, 24), 4), np.zeros((16, 16), bool)]
    masks[2][3, 4] = True
    masks.append(np.zeros((12, 40), bool))
    masks[3][2:4, 2:4] = masks[3][4:6, 4:7] = True
    maps = [(rng.normal(size=m.shape) + 1.5 * m).astype(np.float32) for m in masks]
    if levels is not None:
        maps = [np.round(s * levels).astype(np.float32) for s in maps]
    return maps, masks


def random_case(kind):
    rng = np.random.default_rng(3)
    labels = (rng.random(500) < 0.2).astype(int)
    scores = rng.normal(size=500) + labels
    if kind == "ties":
        scores = np.round(scores)
    elif kind == "constant":
        scores = np.full(500, 0.25)
    elif kind == "inverted":
        scores = -scores
    elif kind == "one positive":
        labels = np.eye(500, dtype=int)[np.argsort(scores)[-7]]
    elif kind == "all positive but one":
        labels = 1 - np.eye(500, dtype=int)[100]
    elif kind == "perfect":
        scores = labels.astype(float)
    return scores.astype(np.float32), labels


CASES = [
    "random",
    "ties",
    "constant",
    "inverted",
    "one positive",
    "all positive but one",
    "perfect",
]


@pytest.mark.parametrize("kind", CASES)
def test_ranking_measures_agree_with_sklearn(kind):
    scores, labels = random_case(kind)
    h = labelled(scores, labels)
    precision, recall, _ = sklearn_metrics.precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    assert histogram.auroc(h) == pytest.approx(sklearn_metrics.roc_auc_score(labels, scores))
    expected = sklearn_metrics.average_precision_score(labels, scores)
    assert histogram.average_precision(h) == pytest.approx(expected)
    assert histogram.f1_max(h) == pytest.approx(f1.max())


@pytest.mark.parametrize("kind", CASES)
def test_curves_pass_through_sklearns_points(kind):
    scores, labels = random_case(kind)
    h = labelled(scores, labels)
    fpr, tpr, _ = sklearn_metrics.roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(histogram.roc_curve(h), [fpr, tpr])
    precision, recall, _ = sklearn_metrics.precision_recall_curve(labels, scores)
    ours = histogram.pr_curve(h)
    np.testing.assert_allclose(ours[0], recall[::-1])
    np.testing.assert_allclose(ours[1][1:], precision[::-1][1:])


@pytest.mark.parametrize(("capacity", "tolerance"), [(LARGE, 1e-4), (2**13, 5e-4)])
def test_large_case_with_joined_bins_agrees_with_sklearn(capacity, tolerance):
    rng = np.random.default_rng(0)
    labels = (rng.random(400_000) < 0.02).astype(int)
    scores = (rng.normal(size=labels.size) + 2 * labels).astype(np.float32)
    h = labelled(scores, labels, capacity)
    assert len(h.scores) <= capacity < len(np.unique(scores))
    assert abs(histogram.auroc(h) - sklearn_metrics.roc_auc_score(labels, scores)) < tolerance
    expected = sklearn_metrics.average_precision_score(labels, scores)
    assert abs(histogram.average_precision(h) - expected) < tolerance


def test_undefined_measures_are_nan():
    scores = np.array([0.1, 0.2, 0.3])
    only_good, only_bad = labelled(scores, [0, 0, 0]), labelled(scores, [1, 1, 1])
    for measure in (histogram.auroc, histogram.average_precision, histogram.f1_max):
        assert np.isnan(measure(only_good))
    assert np.isnan(histogram.aupro(only_good, 0.3))
    assert np.isnan(histogram.auroc(only_bad))
    assert np.isnan(histogram.aupro(only_bad, 0.3))
    assert histogram.average_precision(only_bad) == 1
    for curve in (histogram.roc_curve, histogram.pr_curve, histogram.pro_curve):
        assert [len(axis) for axis in curve(only_good)] == [0, 0]
        assert [len(axis) for axis in curve(only_bad)] == [0, 0]


@pytest.mark.parametrize("max_fpr", [0.3, 0.05])
@pytest.mark.parametrize("levels", [None, 4, 1])
@pytest.mark.parametrize("seed", [0, 1])
def test_aupro_agrees_with_the_definition(seed, levels, max_fpr):
    maps, masks = images(seed, levels)
    expected = slow_aupro(maps, masks, max_fpr)
    assert abs(histogram.aupro(table(maps, masks), max_fpr) - expected) < 1e-9


@pytest.mark.parametrize("max_fpr", [0.3, 0.05])
def test_aupro_of_constant_perfect_and_inverted_maps(max_fpr):
    _, masks = images(0)
    constant = [np.ones(m.shape, np.float32) for m in masks]
    assert histogram.aupro(table(constant, masks), max_fpr) == pytest.approx(max_fpr / 2)
    perfect = [m.astype(np.float32) for m in masks]
    assert histogram.aupro(table(perfect, masks), max_fpr) == pytest.approx(1)
    inverted = [-m.astype(np.float32) for m in masks]
    assert histogram.aupro(table(inverted, masks), max_fpr) == pytest.approx(0)


def test_regions_weigh_the_same_and_touch_at_corners():
    mask = np.zeros((6, 6), bool)
    mask[0, 0] = mask[1, 1] = True  # one region, by its corner
    mask[4:6, 3:6] = True
    counts = pixel_counts(np.zeros((6, 6)), mask)
    np.testing.assert_allclose(counts.sum(axis=0), [28, 8, 2])
    assert counts[0, histogram.REGION] == 0.5


def test_constant_scores_give_half():
    h = labelled(np.zeros(100), np.arange(100) % 3 == 0)
    assert histogram.auroc(h) == 0.5


@pytest.mark.parametrize("capacity", [LARGE, 64])
def test_strictly_increasing_rescaling_changes_nothing(capacity):
    maps, masks = images(2, levels=50)
    scaled = [np.exp(s / 64).astype(np.float32) for s in maps]
    a, b = table(maps, masks, capacity), table(scaled, masks, capacity)
    assert len(np.unique(np.concatenate([s.ravel() for s in maps]))) > 64
    np.testing.assert_array_equal(a.counts, b.counts)
    assert histogram.aupro(a, 0.3) == histogram.aupro(b, 0.3)
    assert histogram.average_precision(a) == histogram.average_precision(b)


def stream(number, size):
    """Images that differ in level, so that their tables interleave; good ones come first."""
    rng = np.random.default_rng(5)
    for index in range(number):
        scores = rng.normal(rng.normal() * 0.3, 1, size)
        labels = np.zeros(size, int)
        if index >= number // 2:
            labels[: rng.integers(5, size // 10)] = 1
        yield (scores + 1.5 * labels).astype(np.float32), labels


def merged(tables):
    return functools.reduce(histogram.merge, tables)


@pytest.mark.parametrize("order", ["good first", "shuffled", "two halves"])
def test_merging_order_does_not_matter_under_compaction(order):
    capacity = 2**14
    stored = list(stream(number=150, size=1000))
    exact = labelled(*(np.concatenate(column) for column in zip(*stored, strict=True)), 10**9)
    tables = [labelled(scores, labels, capacity) for scores, labels in stored]
    if order == "shuffled":
        tables = [tables[i] for i in np.random.default_rng(6).permutation(len(tables))]
    if order == "two halves":
        tables = [merged(tables[:75]), merged(tables[75:])]
    h = merged(tables)
    assert len(h.scores) <= capacity < len(exact.scores)
    np.testing.assert_allclose(h.counts.sum(axis=0), exact.counts.sum(axis=0))
    assert abs(histogram.auroc(h) - histogram.auroc(exact)) < 1e-4
    assert abs(histogram.average_precision(h) - histogram.average_precision(exact)) < 5e-4
    threshold = histogram.quantile(h, 0.995)
    above = exact.counts[exact.scores > threshold].sum() / exact.counts.sum()
    assert 0.0049 < above <= 0.005


def test_compacting_after_every_image_does_not_drift():
    stored = list(stream(number=600, size=300))
    exact = labelled(*(np.concatenate(column) for column in zip(*stored, strict=True)), 10**9)
    h = merged(labelled(scores, labels, 2**11) for scores, labels in stored)
    assert abs(histogram.auroc(h) - histogram.auroc(exact)) < 2e-3
    assert abs(histogram.average_precision(h) - histogram.average_precision(exact)) < 5e-3


def test_merge_is_exact_below_capacity():
    maps, masks = images(1, levels=3)
    forward, backward = table(maps, masks), table(maps[::-1], masks[::-1])
    np.testing.assert_array_equal(
        forward.scores, np.unique(np.concatenate(list(map(np.ravel, maps))))
    )
    np.testing.assert_array_equal(forward.scores, backward.scores)
    np.testing.assert_allclose(forward.counts, backward.counts)


def test_a_joined_bin_keeps_its_highest_score():
    scores = np.arange(1000, dtype=np.float32)
    h = labelled(scores, np.zeros(1000, int), 64)
    assert len(h.scores) <= 64
    total = np.cumsum(h.counts[:, 0])
    np.testing.assert_array_equal(total, h.scores + 1)


def test_a_resampling_axis_gives_what_its_members_give():
    maps, masks = images(4, levels=8)
    counts = np.concatenate([pixel_counts(s, m) for s, m in zip(maps, masks, strict=True)])
    scores = np.concatenate([s.ravel() for s in maps])
    weights = np.repeat(
        np.array([[1, 1, 1, 1], [0, 2, 1, 0], [1, 0, 0, 0]]).T, [600, 768, 256, 480], 0
    )
    many = ScoreHistogram.from_scores(scores, weights[:, :, None] * counts[:, None], LARGE)
    measures = [histogram.auroc, histogram.average_precision, histogram.f1_max]
    for measure in [*measures, lambda h: histogram.aupro(h, 0.3)]:
        single = [
            measure(ScoreHistogram.from_scores(scores, w[:, None] * counts, LARGE))
            for w in weights.T
        ]
        np.testing.assert_allclose(measure(many), single)
        assert np.isnan(single[2])


def test_quantile_is_numpys_higher():
    scores = np.random.default_rng(0).normal(size=301).astype(np.float32)
    h = labelled(scores, np.zeros(301, int))
    for q in (0.001, 0.5, 0.9, 0.99, 1.0):
        assert histogram.quantile(h, q) == np.quantile(scores, q, method="higher")


def test_long_curves_are_thinned_without_losing_their_shape():
    rng = np.random.default_rng(1)
    labels = (rng.random(50_000) < 0.1).astype(int)
    h = labelled(rng.normal(size=labels.size) + labels, labels)
    fpr, tpr = histogram.roc_curve(h)
    assert len(fpr) <= 1000
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert abs(np.trapezoid(tpr, fpr) - histogram.auroc(h)) < 1e-4
    recall, precision = histogram.pr_curve(h)
    assert len(recall) <= 1000
    area = np.sum(np.diff(recall) * precision[1:])
    assert abs(area - histogram.average_precision(h)) < 5e-3


def test_pro_curve_has_the_area_of_aupro():
    maps, masks = images(0)
    fpr, pro = histogram.pro_curve(table(maps, masks))
    assert np.trapezoid(pro, fpr) == pytest.approx(
        histogram.aupro(table(maps, masks), 1.0), abs=1e-3
    )


def test_nan_scores_are_refused():
    with pytest.raises(UserError, match="1 of 3 scores are NaN"):
        labelled(np.array([0.0, np.nan, 1.0]), [0, 0, 1])


def test_infinite_scores_rank_first_and_last():
    h = labelled(np.array([-np.inf, -np.inf, 0.0, np.inf, np.inf]), [0, 0, 0, 1, 1])
    assert len(h.scores) == 3
    assert histogram.auroc(h) == 1
