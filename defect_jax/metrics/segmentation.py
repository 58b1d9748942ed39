"""Overlap of predicted and true foreground."""

import dataclasses
from typing import ClassVar

import numpy as np

from defect_jax.metrics.metric import Estimate, Example, case_weights, ratio


@dataclasses.dataclass(frozen=True)
class Overlap:
    """Sums over images from which the foreground's IoU and Dice follow.

    Attributes:
        sums: [1 + B, 6] float64, per resampling: pixels that are true positive, false positive
            and false negative; the images' own IoU and Dice; images with foreground in mask or
            prediction.
    """

    sums: np.ndarray

    @classmethod
    def from_maps(cls, predicted: np.ndarray, mask: np.ndarray, weights: np.ndarray) -> "Overlap":
        """Returns the sums of one image: predicted and mask [h, w], nonzero is foreground.

        Raises:
            ValueError: the shapes differ.
        """
        check_same_shape(predicted, mask)
        predicted, true = np.asarray(predicted) != 0, np.asarray(mask) != 0
        both = int(np.count_nonzero(predicted & true))
        only_predicted = int(np.count_nonzero(predicted)) - both
        only_true = int(np.count_nonzero(true)) - both
        union = both + only_predicted + only_true
        iou, dice = (both / union, 2 * both / (both + union)) if union else (0.0, 0.0)
        sums = np.array([both, only_predicted, only_true, iou, dice, union > 0])
        return cls(weights[:, None] * sums)

    def merge(self, other: "Overlap") -> "Overlap":
        """Returns the sums over the images of both."""
        return Overlap(self.sums + other.sums)

    def compute(self) -> dict[str, Estimate]:
        """Returns `iou`, `dice`, `iou_per_image` and `dice_per_image`, all in [0, 1].

        The first two are of all pixels pooled, the others means over images, which leave out
        images without foreground in mask and prediction. NaN where no image has any.
        """
        both, only_predicted, only_true, iou, dice, images = self.sums.T
        errors = only_predicted + only_true
        return {
            "iou": ratio(both, both + errors),
            "dice": ratio(2 * both, 2 * both + errors),
            "iou_per_image": ratio(iou, images),
            "dice_per_image": ratio(dice, images),
        }


def check_same_shape(predicted: np.ndarray, mask: np.ndarray) -> None:
    """Raises ValueError unless both have the same shape: broadcasting would hide the mistake."""
    if np.shape(predicted) != np.shape(mask):
        raise ValueError(f"prediction {np.shape(predicted)} and mask {np.shape(mask)} must agree")


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """IoU and Dice of a segmenter's class map.

    Attributes:
        overlap: of the foreground: any class but 0.
        by_class: of each class but 0 that is predicted or true anywhere.
    """

    reads: ClassVar[tuple[str, ...]] = ("class_map", "mask")
    overlap: Overlap
    by_class: dict[int, Overlap]

    @classmethod
    def from_example(cls, example: Example) -> "Segmentation":
        """Returns the state after this one example."""
        weights = case_weights(example)
        predicted, mask = example["class_map"], example["mask"]
        classes = np.union1d(np.unique(predicted), np.unique(mask)).astype(int).tolist()
        return cls(
            Overlap.from_maps(predicted, mask, weights),
            {
                one: Overlap.from_maps(predicted == one, mask == one, weights)
                for one in classes
                if one
            },
        )

    def merge(self, other: "Segmentation") -> "Segmentation":
        """Returns the state after the examples of both."""
        by_class = dict(self.by_class)
        for one, overlap in other.by_class.items():
            by_class[one] = by_class[one].merge(overlap) if one in by_class else overlap
        return Segmentation(self.overlap.merge(other.overlap), by_class)

    def compute(self) -> dict[str, Estimate]:
        """Returns what `Overlap.compute` does of the foreground.

        Of several classes, where mixing them up costs the foreground nothing, each class's pooled
        IoU too, as `iou_class_<id>`.
        """
        values = self.overlap.compute()
        if max(self.by_class, default=0) > 1:
            for one in sorted(self.by_class):
                values[f"iou_class_{one}"] = self.by_class[one].compute()["iou"]
        return values
