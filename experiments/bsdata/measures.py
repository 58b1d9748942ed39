"""What is measured on BSData beside the metrics of `defect_jax.metrics`.

Each is a metric in their sense, so it merges, and its estimates come with bootstrap samples.
"""

import dataclasses
from typing import ClassVar

import numpy as np
from PIL import Image
from scipy import special

from defect_jax.metrics import Detection, Estimate, Example
from defect_jax.metrics.metric import case_weights, ratio
from defect_jax.metrics.segmentation import Overlap, check_same_shape
from defect_jax.ops.objects import label_regions

ZNET_SIZE = (256, 512)  # height, width
# Areas in pixels of the file at which the bins of true pits, or of images by all their true pits
# together, begin, with what they are called.
PIT_BINS = {0: "<200", 200: "200-1000", 1000: "1000-5000", 5000: ">5000"}


@dataclasses.dataclass(frozen=True)
class TwoClass:
    """The mean of foreground's and background's pooled IoU, which papers call mean IoU.

    It says little where defects are rare: background everywhere reaches half of it.
    """

    reads: ClassVar[tuple[str, ...]] = ("class_map", "mask")
    foreground: Overlap
    background: Overlap

    @classmethod
    def from_example(cls, example: Example) -> "TwoClass":
        """Returns the state after this one example."""
        predicted, true = example["class_map"] != 0, example["mask"] != 0
        weights = case_weights(example)
        return cls(
            Overlap.from_maps(predicted, true, weights),
            Overlap.from_maps(~predicted, ~true, weights),
        )

    def merge(self, other: "TwoClass") -> "TwoClass":
        """Returns the state after the examples of both."""
        return TwoClass(
            self.foreground.merge(other.foreground), self.background.merge(other.background)
        )

    def compute(self) -> dict[str, Estimate]:
        """Returns `iou_two_class`, in [0, 1]."""
        one, other = (part.compute()["iou"] for part in (self.foreground, self.background))
        mean = Estimate((one.value + other.value) / 2, (one.samples + other.samples) / 2)
        return {"iou_two_class": mean}


@dataclasses.dataclass(frozen=True)
class ZNet:
    """The foreground's IoU at the size and the threshold of ZNet's authors.

    Truth and the predicted probability of a pit are shrunk to 256x512 bilinearly and cut at 0.5.
    Whatever threshold and minimum area the class map was made with have no part in it. `znet` is
    counted as by them (`acc_miou_p` of their Evaluator.py), the mean over images of
    (TP + 1) / (|predicted| + |true| - TP + 1): a missed pit that shrinks to few pixels is paid for
    with 1 / (|true| + 1). `iou_256x512` pools the pixels of all images; of large files, those of
    type 1, it counts fewer than the IoU at their own resolution does.

    Attributes:
        sums: [1 + B, 4] float64, per resampling: the images' figures, their number, and pixels that
            are pits in both maps and in either.
    """

    reads: ClassVar[tuple[str, ...]] = ("score_map", "mask")
    sums: np.ndarray

    @classmethod
    def from_example(cls, example: Example) -> "ZNet":
        """Returns the state after this one example, whose `score_map` is the log-odds of a pit."""
        check_same_shape(example["score_map"], example["mask"])
        predicted = _shrink(special.expit(example["score_map"]))
        true = _shrink(example["mask"] != 0)
        hits = np.count_nonzero(predicted & true)
        union = np.count_nonzero(predicted | true)
        counts = np.array([(hits + 1) / (union + 1), 1.0, hits, union])
        return cls(case_weights(example)[:, None] * counts)

    def merge(self, other: "ZNet") -> "ZNet":
        """Returns the state after the examples of both."""
        return ZNet(self.sums + other.sums)

    def compute(self) -> dict[str, Estimate]:
        """Returns `znet` and `iou_256x512`, in [0, 1]."""
        figure, number, hits, union = self.sums.T
        return {"znet": ratio(figure, number), "iou_256x512": ratio(hits, union)}


@dataclasses.dataclass(frozen=True)
class PitRecall:
    """The share of true pits that are hit, by their area; what a hit is, see `Detection`.

    Attributes:
        bins: for each of `PIT_BINS` a `Detection` that knows the pits of these areas alone.
    """

    reads: ClassVar[tuple[str, ...]] = Detection.reads
    bins: tuple[Detection, ...]

    @classmethod
    def from_example(cls, example: Example) -> "PitRecall":
        """Returns the state after this one example."""
        labels, count = label_regions(example["mask"])
        areas = np.bincount(labels.ravel(), minlength=count + 1)
        number = np.searchsorted(list(PIT_BINS), areas, side="right") - 1
        number[0] = -1  # the background
        bins = []
        for this in range(len(PIT_BINS)):
            images = Detection(())  # an image without such pits changes no share of them
            if (number == this).any():
                images = Detection.from_example({**example, "mask": (number == this)[labels]})
            bins.append(images)
        return cls(tuple(bins))

    def merge(self, other: "PitRecall") -> "PitRecall":
        """Returns the state after the examples of both."""
        merged = (one.merge(more) for one, more in zip(self.bins, other.bins, strict=True))
        return PitRecall(tuple(merged))

    def counts(self) -> dict[str, int]:
        """Returns the number of true pits in each bin."""
        numbers = (sum(image.num_defects for image in one.images) for one in self.bins)
        return dict(zip(PIT_BINS.values(), numbers, strict=True))

    def compute(self) -> dict[str, Estimate]:
        """Returns `recall_<bin>` of each bin that has a pit, in [0, 1]."""
        return {
            f"recall_{name}": one.compute()["object_recall"]
            for name, one in zip(PIT_BINS.values(), self.bins, strict=True)
            if one.images
        }


def pit_bin(mask: np.ndarray) -> str:
    """The bin of an image, by the area of all pits of its mask [h, w] together.

    Each image lies in one bin, with what is predicted wrongly anywhere on it, so the pixels of the
    bins add up to those of all images. By pits alone a false alarm would lie in no bin.
    """
    number = np.searchsorted(list(PIT_BINS), np.count_nonzero(mask), side="right") - 1
    return list(PIT_BINS.values())[number]


def _shrink(values: np.ndarray) -> np.ndarray:
    """Where a map [h, w] in [0, 1], shrunk as Pillow does it, is at least a half: [256, 512]."""
    image = Image.fromarray(np.asarray(values, np.float32))
    return np.asarray(image.resize(ZNET_SIZE[::-1], Image.Resampling.BILINEAR)) >= 0.5
