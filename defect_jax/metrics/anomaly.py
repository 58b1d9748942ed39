"""How well scores and score maps rank defects, and how well calibrated thresholds decide."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, Self

import numpy as np

from defect_jax.errors import UserError
from defect_jax.metrics import histogram
from defect_jax.metrics.histogram import ScoreHistogram
from defect_jax.metrics.metric import Estimate, Example, case_weights, ratio
from defect_jax.metrics.segmentation import Overlap, check_same_shape
from defect_jax.ops.objects import label_regions

# Rows of the table for values, of the bootstrap's table, and of one image's part in the latter.
FINE_CAPACITY = 2**17
COARSE_CAPACITY = 2**10
IMAGE_CAPACITY = 2**9


@dataclasses.dataclass(frozen=True)
class _Ranking:
    """Score histograms of the examples so far.

    Attributes:
        fine: counts [n, 3], for the values.
        coarse: counts [m, 1 + B, 3], for the bootstrap; the first resampling is the test set.
    """

    fine: ScoreHistogram
    coarse: ScoreHistogram

    @classmethod
    def _from_scores(cls, scores: np.ndarray, counts: np.ndarray, weights: np.ndarray) -> Self:
        fine = ScoreHistogram.from_scores(scores, counts, FINE_CAPACITY)
        small = fine.compact(IMAGE_CAPACITY)
        weighted = small.counts[:, None] * weights[:, None]
        return cls(fine, ScoreHistogram(small.scores, weighted, COARSE_CAPACITY))

    @classmethod
    def _from_image(cls, example: Example, score: float) -> Self:
        """The state of one image with one score."""
        counts = np.array([[1.0, 0.0, 0.0]] if example["label"] == 0 else [[0.0, 1.0, 0.0]])
        return cls._from_scores(np.array([score]), counts, case_weights(example))

    def merge(self, other: Self) -> Self:
        """Returns the state after the examples of both."""
        fine = histogram.merge(self.fine, other.fine)
        return type(self)(fine, histogram.merge(self.coarse, other.coarse))

    def _estimate(self, measure: Callable[[ScoreHistogram], np.ndarray]) -> Estimate:
        value = float(measure(self.fine))
        coarse = measure(self.coarse)
        # The coarse table's own error is much the same in every resampling and cancels.
        return Estimate(value, np.clip(value + coarse[1:] - coarse[0], 0, 1))

    def _image_estimate(self, measure: Callable[[ScoreHistogram], np.ndarray]) -> Estimate:
        """NaN unless there are good and defective images: of one kind any ranking is perfect."""
        totals = self.fine.counts.sum(axis=0)
        if totals[histogram.NORMAL] and totals[histogram.DEFECTIVE]:
            return self._estimate(measure)
        return Estimate(np.nan, np.full(self.coarse.counts.shape[1] - 1, np.nan))


@dataclasses.dataclass(frozen=True)
class ImageRanking(_Ranking):
    """How well image scores separate defective images from good ones."""

    reads: ClassVar[tuple[str, ...]] = ("score", "label")

    @classmethod
    def from_example(cls, example: Example) -> "ImageRanking":
        """Returns the state after this one example.

        Raises:
            UserError: the score is NaN.
        """
        return cls._from_image(example, example["score"])

    def compute(self) -> dict[str, Estimate]:
        """Returns `image_auroc`, `image_ap` and `image_f1_max`, all in [0, 1].

        `image_f1_max` is an oracle: it chooses its threshold on the test labels. `Calibrated` has
        the F1 of a threshold that could be known before the test. All are NaN unless there are
        both good and defective images.
        """
        return {
            "image_auroc": self._image_estimate(histogram.auroc),
            "image_ap": self._image_estimate(histogram.average_precision),
            "image_f1_max": self._image_estimate(histogram.f1_max),
        }


@dataclasses.dataclass(frozen=True)
class BrightnessRanking(_Ranking):
    """A control: how well the images' mean brightness alone separates defective from good ones.

    Where good and defective test images were taken in different light, a score that follows the
    light ranks them well, or, the other way around, worse than chance, without seeing a defect.
    """

    reads: ClassVar[tuple[str, ...]] = ("image", "label")

    @classmethod
    def from_example(cls, example: Example) -> "BrightnessRanking":
        """Returns the state after this one example."""
        return cls._from_image(example, example["image"].mean())

    def compute(self) -> dict[str, Estimate]:
        """Returns `brightness_auroc`, in [0, 1]; NaN unless there are good and defective images.

        0.5 says that brightness tells nothing; near 0 defective images are the darker ones, near 1
        the brighter ones.
        """
        return {"brightness_auroc": self._image_estimate(histogram.auroc)}


@dataclasses.dataclass(frozen=True)
class PixelRanking(_Ranking):
    """How well score maps separate defective pixels from normal ones, good images included."""

    reads: ClassVar[tuple[str, ...]] = ("score_map", "mask")

    @classmethod
    def from_example(cls, example: Example) -> "PixelRanking":
        """Returns the state after this one example.

        Raises:
            UserError: a score is NaN.
            ValueError: score map and mask differ in shape.
        """
        score_map = np.asarray(example["score_map"])
        counts = pixel_counts(score_map, example["mask"])
        return cls._from_scores(score_map.ravel(), counts, case_weights(example))

    def compute(self) -> dict[str, Estimate]:
        """Returns `pixel_auroc`, `pixel_ap`, and AUPRO to FPR 0.30 and 0.05, all in [0, 1]."""
        return {
            "pixel_auroc": self._estimate(histogram.auroc),
            "pixel_ap": self._estimate(histogram.average_precision),
            "aupro_30": self._estimate(lambda h: histogram.aupro(h, 0.30)),
            "aupro_05": self._estimate(lambda h: histogram.aupro(h, 0.05)),
        }


def pixel_counts(score_map: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns counts [h * w, 3] of a mask [h, w] as `ScoreHistogram` wants them.

    Regions are 8-connected, as in the official evaluation code of MVTec AD.

    Raises:
        ValueError: score map and mask differ in shape.
    """
    check_same_shape(score_map, mask)
    defective = np.asarray(mask) != 0
    regions, _ = label_regions(defective)
    regions = regions.ravel()
    weight = 1 / np.bincount(regions).clip(1)
    weight[0] = 0
    defective = defective.ravel()
    return np.stack([~defective, defective, weight[regions]], axis=1)


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """Decisions at thresholds that were fixed on normal validation images.

    Attributes:
        decisions: [1 + B, 4] float64, images that are true positive, false positive, false
            negative and true negative.
        overlap: of the pixels above the threshold with the mask; None without score maps.
    """

    reads: ClassVar[tuple[str, ...]] = ("score", "label", "thresholds")
    decisions: np.ndarray
    overlap: Overlap | None

    @classmethod
    def from_example(cls, example: Example) -> "Calibrated":
        """Returns the state after this one example; reads `score_map` and `mask` where present.

        Raises:
            UserError: the thresholds follow the area rule and there is no score map.
            ValueError: score map and mask differ in shape.
        """
        weights = case_weights(example)
        outcome = 2 * (not is_flagged(example)) + (example["label"] == 0)
        decisions = weights[:, None] * np.eye(4)[int(outcome)]
        return cls(decisions, _pixel_overlap(example, weights))

    def merge(self, other: "Calibrated") -> "Calibrated":
        """Returns the state after the examples of both."""
        overlap = self.overlap
        if overlap is not None and other.overlap is not None:
            overlap = overlap.merge(other.overlap)
        return Calibrated(self.decisions + other.decisions, overlap)

    def compute(self) -> dict[str, Estimate]:
        """Returns `precision`, `recall`, `f1` and `false_alarm_rate` of the image decision.

        With score maps also what `Overlap.compute` returns of the pixels above the threshold. All
        in [0, 1]; NaN where undefined (the precision of a detector that flags nothing).
        """
        hits, alarms, misses, passes = self.decisions.T
        overlap = {} if self.overlap is None else self.overlap.compute()
        return {
            "precision": ratio(hits, hits + alarms),
            "recall": ratio(hits, hits + misses),
            "f1": ratio(2 * hits, 2 * hits + alarms + misses),
            "false_alarm_rate": ratio(alarms, alarms + passes),
            **overlap,
        }


def is_flagged(example: Example) -> bool:
    """Returns whether the thresholds call the image defective.

    Raises:
        UserError: the thresholds follow the area rule and there is no score map.
    """
    thresholds = example["thresholds"]
    if thresholds.max_flagged is None:
        return bool(example["score"] > thresholds.image)
    if "score_map" not in example:
        raise UserError(
            "the area rule needs score maps and this method has none: use the rule 'quantile'"
        )
    flagged = np.count_nonzero(example["score_map"] > thresholds.pixel)
    return bool(flagged >= thresholds.max_flagged)


def _pixel_overlap(example: Example, weights: np.ndarray) -> Overlap | None:
    if "score_map" not in example or "mask" not in example:
        return None
    above = np.asarray(example["score_map"]) > example["thresholds"].pixel
    return Overlap.from_maps(above, example["mask"], weights)
