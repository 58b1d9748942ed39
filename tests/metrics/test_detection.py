import functools

import numpy as np
import pytest
from scipy import ndimage

from defect_jax.errors import UserError
from defect_jax.metrics import METRICS, Detection
from defect_jax.metrics.metric import bootstrap_weights


def example(class_map, score_map, mask, bootstrap=()):
    return {
        "class_map": np.array(class_map),
        "score_map": np.array(score_map, np.float32),
        "mask": np.array(mask),
        "bootstrap": np.array(bootstrap, np.float64),
    }


def run(cases):
    states = [Detection.from_example(case) for case in cases]
    return functools.reduce(lambda a, b: a.merge(b), states).compute()


def values(cases):
    return {name: estimate.value for name, estimate in run(cases).items()}


def strip(scores, mask):
    """A case of one row: a candidate wherever a score is not 0."""
    return example([[int(score != 0) for score in scores]], [scores], [mask])


def random_cases(number, seed, num_samples=0):
    """Blobs shifted, left out, joined and added; scores of few values, so that many tie."""
    rng = np.random.default_rng(seed)
    cases = []
    for index in range(number):
        noise = ndimage.gaussian_filter(rng.normal(size=(2, 40, 40)), (0, 2, 2))
        mask = noise[0] > 0.16
        if index % 5 == 4:
            mask[:] = False
        predicted = np.roll(noise[0], rng.integers(-2, 3, 2), (0, 1)) + 0.5 * noise[1] > 0.16
        score_map = np.round(4 * noise[0] + rng.normal(size=(40, 40)))
        weights = bootstrap_weights(seed, index, num_samples)
        cases.append(example(2 * predicted, score_map, 255 * mask, weights))
    return cases


def slow_objects(case):
    """Candidates as (score, what they hit), and the true defects, pair by pair."""
    connected = functools.partial(ndimage.label, structure=np.ones((3, 3)))
    predicted, num_candidates = connected(case["class_map"] > 0)
    true, num_defects = connected(case["mask"] > 0)
    candidates = []
    for number in range(1, num_candidates + 1):
        inside = predicted == number
        hit = [
            other for other in range(1, num_defects + 1)
            if (inside & (true == other)).sum() >= 0.1 * (inside | (true == other)).sum()
        ]  # fmt: skip
        candidates.append((case["score_map"][inside].max(), hit))
    return candidates, num_defects


def slow(cases):
    objects = [slow_objects(case) for case in cases]
    num_defects = sum(number for _, number in objects)
    scores = [score for candidates, _ in objects for score, _ in candidates]

    def at(threshold):
        found = alarms = 0
        for candidates, _ in objects:
            above = [hit for score, hit in candidates if score >= threshold]
            found += len(set().union(*above))
            alarms += above.count([])
        return found / num_defects, alarms

    curve = [at(threshold) for threshold in [np.inf, *np.unique(scores)]]
    recall, alarms = at(-np.inf)
    precision = 1 - alarms / len(scores)
    return {
        "object_recall_01": max(r for r, a in curve if a <= 0.1 * len(cases)),
        "object_recall_1": max(r for r, a in curve if a <= len(cases)),
        "object_recall": recall,
        "object_precision": precision,
        "object_f1": 2 * precision * recall / (precision + recall),
    }


@pytest.mark.parametrize("seed", range(4))
def test_values_agree_with_a_slow_loop(seed):
    cases = random_cases(12, seed)
    expected = slow(cases)
    assert values(cases) == pytest.approx(expected)
    # The cases are hard enough for the five figures to differ.
    assert len(set(expected.values())) == 5


def test_perfect_candidates_find_everything():
    mask = [0, 1, 1, 0, 1]
    assert set(values([strip([0, 2, 1, 0, 3], mask)] * 2).values()) == {1}


def test_one_missed_of_two():
    result = values([strip([0, 2, 2, 0, 0, 0], [0, 1, 1, 0, 1, 1])])
    assert result == pytest.approx(
        {
            "object_recall_01": 1 / 2,
            "object_recall_1": 1 / 2,
            "object_recall": 1 / 2,
            "object_precision": 1,
            "object_f1": 2 / 3,
        }
    )


def test_a_joined_candidate_hits_both_and_counts_once():
    joined = [2, 2, 2, 2, 2, 0, 1]
    result = values([strip(joined, [1, 1, 0, 1, 1, 0, 0])])
    assert result["object_recall"] == 1
    assert result["object_precision"] == 1 / 2  # the speck on the right is the other candidate


def test_pieces_of_one_defect_are_no_false_alarms():
    result = values([strip([1, 1, 0, 2, 2], [1, 1, 1, 1, 1])])
    assert result["object_precision"] == result["object_recall"] == 1


@pytest.mark.parametrize("extra, is_hit", [(9, True), (10, False)])
def test_a_candidate_must_overlap_by_a_tenth(extra, is_hit):
    result = values([strip([1] + [0] * extra, [1] * (extra + 1))])
    assert result["object_recall"] == is_hit


def test_without_any_hit_all_is_zero():
    result = values([strip([0, 0, 5], [1, 0, 0])])
    assert set(result.values()) == {0}


def test_without_candidates_precision_is_undefined_and_f1_zero():
    result = values([strip([0, 0], [1, 0])])
    assert np.isnan(result.pop("object_precision"))
    assert set(result.values()) == {0}


def test_without_true_defects_all_is_undefined():
    for estimate in run([strip([0, 3, 0], [0, 0, 0])] * 2).values():
        assert np.isnan(estimate.value)
        assert estimate.interval() is None


def test_false_alarms_on_good_images_count():
    good = strip([5, 0, 4, 0, 3, 0, 2], [0] * 7)
    found = strip([2.5, 0, 0], [1, 0, 0])
    # Three false alarms score above the one that is found: more than one to each of two images.
    assert values([good, found])["object_recall_1"] == 0
    assert values([good, found, strip([0], [0])])["object_recall_1"] == 1


def test_a_threshold_parts_no_equal_scores():
    """The false alarm that is one too many takes the find of the same score with it."""
    above, tied = [strip([3, 0, 0], [1, 0, 0])], [strip([2, 0, 2], [1, 0, 0])]
    result = values(above + tied)
    assert result["object_recall_01"] == 1 / 2
    assert result["object_recall_1"] == 1
    assert values(above + tied + 8 * [strip([0], [0])])["object_recall_01"] == 1


def test_the_order_of_merging_does_not_matter():
    cases = random_cases(12, seed=5, num_samples=20)
    states = [Detection.from_example(case) for case in cases]
    forward = functools.reduce(Detection.merge, states).compute()
    half = functools.reduce(Detection.merge, states[6:])
    other = half.merge(functools.reduce(Detection.merge, states[:6][::-1])).compute()
    for name, estimate in forward.items():
        assert other[name].value == estimate.value
        np.testing.assert_array_equal(other[name].samples, estimate.samples)


def test_weights_are_repetitions_of_images():
    cases = random_cases(12, seed=6, num_samples=5)
    result = run(cases)
    for sample in range(5):
        drawn = [case for case in cases for _ in range(int(case["bootstrap"][sample]))]
        for name, value in values(drawn).items():
            assert result[name].samples[sample] == pytest.approx(value), name


def test_a_resampling_without_true_defects_is_undefined():
    cases = [strip([1, 0], [1, 0]) | {"bootstrap": np.array([0.0, 1.0])}]
    cases += [strip([1, 0], [0, 0]) | {"bootstrap": np.array([1.0, 0.0])}]
    for estimate in run(cases).values():
        np.testing.assert_array_equal(np.isnan(estimate.samples), [True, False])


def test_class_and_mask_values_do_not_matter():
    maps = [[[1, 2, 0, 1]], [[1, 3, 0, 2]], [[7, 7, 0, 0]]]
    result = values([example(*maps)])
    assert result["object_recall"] == 1
    assert result["object_precision"] == 1 / 2  # two classes that touch are one candidate


def test_the_table_has_it():
    assert METRICS["detection"] is Detection


def test_a_score_that_is_not_a_number_is_refused():
    with pytest.raises(UserError, match="1 of 2 predicted defects score NaN"):
        Detection.from_example(strip([np.nan, 0, 1], [1, 0, 0]))


@pytest.mark.parametrize("name", ["class_map", "score_map"])
def test_shapes_that_would_broadcast_are_refused(name):
    case = strip([1, 0], [1, 0]) | {name: np.ones((1, 1))}
    with pytest.raises(ValueError, match="must agree"):
        Detection.from_example(case)
