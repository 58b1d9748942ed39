"""Decision thresholds from normal validation images alone."""

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

from defect_jax.errors import UserError
from defect_jax.metrics.histogram import ScoreHistogram, merge, quantile
from defect_jax.metrics.metric import Example

CAPACITY = 2**17
RULES = ("area", "quantile")


class Thresholds(NamedTuple):
    """What turns scores into decisions.

    Attributes:
        image: an image whose score lies above it is flagged.
        pixel: a pixel whose score lies above it is flagged; None where there is no score map.
        max_flagged: where set, an image is flagged if it has this many flagged pixels or more,
            and `image` is not used.
    """

    image: float
    pixel: float | None
    max_flagged: int | None


def image_threshold(scores: np.ndarray, q: float) -> float:
    """Returns the q-quantile of the normal images' scores [n] by NumPy's method 'higher'.

    At most a share 1 - q of these images score above it.

    Raises:
        UserError: no scores, a NaN among them, or q outside (0, 1].
    """
    scores = _checked(scores)
    return float(np.quantile(scores, _share(q), method="higher"))


def area_threshold(peaks: np.ndarray, share: float) -> float:
    """Returns the smallest pixel threshold that leaves a share of the images unflagged.

    An image has fewer than N pixels above t exactly if its N-th highest pixel is at most t, so the
    threshold is an order statistic of these. This is the rule that Unsupervised Defect Segmentation
    (DeeCamp group 10) set out to apply, with a share of 0.99 and N = 400.

    Args:
        peaks: [n], each normal image's N-th highest pixel score; -inf if it has fewer pixels.
        share: of the images that must have fewer than N pixels above the threshold, in (0, 1].

    Raises:
        UserError: no peaks, a NaN among them, a share outside (0, 1], or images of fewer than N
            pixels, for which every threshold would do.
    """
    peaks = np.sort(_checked(peaks))
    # The small number undoes rounding in products such as 0.07 * 100 = 7.000000000000001.
    threshold = float(peaks[math.ceil(_share(share) * len(peaks) - 1e-9) - 1])
    if threshold == -math.inf:
        raise UserError(
            "validation images have fewer pixels than the area rule's max_flagged: lower it"
        )
    return threshold


def _checked(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores)
    if scores.size == 0:
        raise UserError("no normal validation image to calibrate on: add images to train/good")
    if np.isnan(scores).any():
        raise UserError(
            f"{np.isnan(scores).sum()} of {scores.size} validation scores are NaN: "
            "restore a checkpoint from before the parameters diverged"
        )
    return scores


def _share(value: float) -> float:
    if not 0 < value <= 1:
        raise UserError(f"calibration share or quantile is {value}: choose one in (0, 1]")
    return value


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What the thresholds need to know of the normal validation images.

    Attributes:
        scores: [n] float32, the images' scores (a few bytes an image).
        peaks: [n] float32, the images' `max_flagged`-th highest pixel scores; [0] without maps.
        pixels: all pixels' scores; no rows without maps.
        max_flagged: the number of flagged pixels, at native resolution, that flags an image.
    """

    scores: np.ndarray
    peaks: np.ndarray
    pixels: ScoreHistogram
    max_flagged: int

    @classmethod
    def from_example(cls, example: Example, max_flagged: int) -> "Calibration":
        """Returns the state after one normal image's `score` and, where present, `score_map`.

        Raises:
            UserError: a score is NaN, or `max_flagged` is not positive.
        """
        if max_flagged < 1:
            raise UserError(f"the area rule's max_flagged is {max_flagged}: choose at least 1")
        scores = _checked(np.array([example["score"]], np.float32))
        if "score_map" not in example:
            none = np.empty(0, np.float32)
            pixels = ScoreHistogram.from_scores(none, np.empty((0, 3)), CAPACITY)
            return cls(scores, none, pixels, max_flagged)
        flat = np.asarray(example["score_map"], np.float32).ravel()
        pixels = ScoreHistogram.from_scores(
            flat, np.tile([1.0, 0.0, 0.0], (flat.size, 1)), CAPACITY
        )
        peak = np.float32(-np.inf)
        if flat.size >= max_flagged:
            peak = np.partition(flat, flat.size - max_flagged)[flat.size - max_flagged]
        return cls(scores, np.array([peak], np.float32), pixels, max_flagged)

    def merge(self, other: "Calibration") -> "Calibration":
        """Returns the state after the images of both."""
        return Calibration(
            np.concatenate([self.scores, other.scores]),
            np.concatenate([self.peaks, other.peaks]),
            merge(self.pixels, other.pixels),
            self.max_flagged,
        )

    def compute(self, image_quantile: float, pixel_quantile: float, share: float) -> dict[str, Any]:
        """Returns both rules' thresholds, ready for JSON.

        Args:
            image_quantile: of the images' scores, see `image_threshold`.
            pixel_quantile: of all pixels' scores, in (0, 1].
            share: see `area_threshold`.

        Returns:
            The arguments, `num_images`, and the fields of a `Thresholds` under `quantile` and,
            where there are score maps and images large enough for it, under `area`.

        Raises:
            UserError: an argument outside (0, 1], or images too small for the area rule.
        """
        image = image_threshold(self.scores, image_quantile)
        rules = {"quantile": Thresholds(image, None, None)}
        if len(self.peaks) > 0:
            pixel = quantile(self.pixels, _share(pixel_quantile))
            rules["quantile"] = Thresholds(image, pixel, None)
            if np.isfinite(self.peaks).all():
                area = area_threshold(self.peaks, share)
                rules["area"] = Thresholds(image, area, self.max_flagged)
        return {
            "num_images": len(self.scores),
            "image_quantile": image_quantile,
            "pixel_quantile": pixel_quantile,
            "share": share,
            **{name: rule._asdict() for name, rule in rules.items()},
        }
