"""How well defects are found as objects, at how many false alarms."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np

from defect_jax.errors import UserError
from defect_jax.metrics.metric import Estimate, Example, case_weights, ratio
from defect_jax.metrics.segmentation import check_same_shape
from defect_jax.ops.objects import label_regions

MIN_IOU = 0.1
# False alarms per image at which recall is read from the FROC curve.
_LIMITS = {"object_recall_01": 0.1, "object_recall_1": 1.0}


class _Objects(NamedTuple):
    """The objects of one image.

    Attributes:
        alarms: [a] float64, scores of the candidates that hit nothing.
        found: [f] float64, scores of the true defects that are hit.
        num_hits: candidates that hit a true defect.
        num_defects: true defects, hit or not.
        weights: [1 + B] float64, how often the image counts in each resampling.
    """

    alarms: np.ndarray
    found: np.ndarray
    num_hits: int
    num_defects: int
    weights: np.ndarray


@dataclasses.dataclass(frozen=True)
class Detection:
    """Whether each defect is found, and how many false alarms that costs: the FROC curve.

    Candidates are the 8-connected regions of the class map's foreground, true defects those of
    the mask; which class a pixel has does not matter. A candidate scores as its highest pixel.

    A candidate hits a true defect where the intersection over union of the two is at least 0.1.
    Pits are small and their outlines uncertain, so a pit counts as found, not as outlined: the
    overlap of pixels measures the outline. The bound only keeps apart what merely touches, and a
    speck or a flood that happens to lie on a pit. A candidate that joins two pits may hit both;
    of several candidates on one pit each that reaches the bound is a hit, and none of those a
    false alarm. A candidate that hits nothing is a false alarm.

    A true defect scores as the highest candidate that hits it; without one, no threshold finds
    it. At a threshold, recall is the share of true defects that score at least that high, and the
    false alarms that do are divided by the number of images (Bunch et al., A free response
    approach to the measurement and characterization of radiographic observer performance, 1978).

    Attributes:
        images: the objects of each image so far.
    """

    reads: ClassVar[tuple[str, ...]] = ("class_map", "score_map", "mask")
    images: tuple[_Objects, ...]

    @classmethod
    def from_example(cls, example: Example) -> "Detection":
        """Returns the state after this one example.

        Raises:
            UserError: a candidate's score is NaN.
            ValueError: the maps and the mask differ in shape.
        """
        check_same_shape(example["class_map"], example["mask"])
        check_same_shape(example["score_map"], example["mask"])
        candidates, num_candidates = label_regions(example["class_map"])
        defects, num_defects = label_regions(example["mask"])
        scores = _highest(example["score_map"], candidates, num_candidates)
        hitting, hit = _hits(candidates, defects)
        best = np.full(num_defects + 1, -np.inf)
        np.maximum.at(best, hit, scores[hitting])
        is_alarm = np.ones(num_candidates + 1, bool)
        is_alarm[[0, *hitting]] = False
        objects = _Objects(
            alarms=scores[is_alarm],
            found=best[np.unique(hit)],
            num_hits=len(np.unique(hitting)),
            num_defects=num_defects,
            weights=case_weights(example),
        )
        return cls((objects,))

    def merge(self, other: "Detection") -> "Detection":
        """Returns the state after the examples of both."""
        return Detection(self.images + other.images)

    def compute(self) -> dict[str, Estimate]:
        """Returns recall and precision of defects as objects, all in [0, 1].

        `object_recall_01` and `object_recall_1` are the highest recall with at most 0.1 and 1
        false alarms per image, of the candidates that the class map has: another cut of the
        scores has others. Without a threshold, `object_recall` is the share of true defects
        that are hit, `object_precision` the share of candidates that hit one, and `object_f1` the
        harmonic mean of these two, 0 where nothing is hit. NaN where there is no true defect, and
        the precision also where there is no candidate.
        """
        weights = np.stack([image.weights for image in self.images])
        counts = np.array(
            [
                (len(one.alarms), len(one.found), one.num_hits, one.num_defects)
                for one in self.images
            ]
        )
        alarms, found, hits, defects = counts.T @ weights
        candidates = hits + alarms
        within = _found_within(self.images, weights, tuple(_LIMITS.values()))
        return {
            **{name: ratio(row, defects) for name, row in zip(_LIMITS, within, strict=True)},
            "object_recall": ratio(found, defects),
            "object_precision": ratio(hits, np.where(defects > 0, candidates, 0)),
            "object_f1": ratio(
                2 * hits * found, np.where(hits > 0, hits * defects + found * candidates, defects)
            ),
        }


def _highest(score_map: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """The highest score [1 + count] of each region, that of the background minus infinity."""
    scores = np.full(count + 1, -np.inf)
    np.maximum.at(scores, labels[labels > 0], np.asarray(score_map)[labels > 0])
    if np.isnan(scores).any():
        raise UserError(
            f"{np.isnan(scores).sum()} of {count} predicted defects score NaN: "
            "restore a checkpoint from before the parameters diverged"
        )
    return scores


def _hits(candidates: np.ndarray, defects: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of a candidate and a true defect it hits: their labels, both [n]."""
    both = (candidates > 0) & (defects > 0)
    stride = int(defects.max(initial=0)) + 1
    pairs, shared = np.unique(
        candidates[both].astype(np.int64) * stride + defects[both], return_counts=True
    )
    hitting, hit = np.divmod(pairs, stride)
    areas = np.bincount(candidates.ravel())[hitting] + np.bincount(defects.ravel())[hit]
    enough = shared / (areas - shared) >= MIN_IOU
    return hitting[enough], hit[enough]


def _found_within(
    images: Sequence[_Objects], weights: np.ndarray, limits: Sequence[float]
) -> np.ndarray:
    """The most true defects found with at most so many false alarms an image: [limits, 1 + B].

    Going down the false alarms by score, the first that is one too many bounds the threshold from
    below: found is what scores higher. What ties with it comes no earlier than it does.
    """
    alarms, alarm_image = _descending([image.alarms for image in images])
    found, found_image = _descending([image.found for image in images])
    alarms = np.append(alarms, -np.inf)  # the bound where none is too many
    rows = []
    for weight in weights.T:
        number = np.searchsorted(
            np.cumsum(weight[alarm_image]), np.multiply(limits, weight.sum()), side="right"
        )
        rows.append((found > alarms[number, None]) @ weight[found_image])
    return np.stack(rows, axis=1)


def _descending(scores: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """All scores [n], the highest first, and the number of each one's image."""
    images = np.repeat(np.arange(len(scores)), [len(one) for one in scores])
    pooled = np.concatenate(scores)
    order = np.argsort(-pooled)
    return pooled[order], images[order]
