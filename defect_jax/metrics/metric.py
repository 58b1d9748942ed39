"""What a metric is: a mergeable record of examples, from which estimates follow."""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import numpy as np

Example = Mapping[str, Any]


class Estimate(NamedTuple):
    """A metric's value and the values on resampled test sets.

    Attributes:
        value: NaN where the metric is undefined.
        samples: [B] float64, one value per bootstrap sample, NaN where undefined.
    """

    value: float
    samples: np.ndarray

    def interval(self) -> tuple[float, float] | None:
        """Returns the 95 % percentile interval, None where it is undefined."""
        if np.isnan(self.value) or np.isnan(self.samples).all():
            return None
        low, high = np.nanpercentile(self.samples, [2.5, 97.5])
        return float(low), float(high)


class Metric(Protocol):
    """A metric's state after some examples. Immutable; the order of merging does not matter.

    An example is one image's dict on the host, with these keys (`reads` names those that must be
    there):
        score: float, higher is more defective.
        label: int, 0 good, 1 defective.
        image: [H, W, C] uint8 as the model saw it.
        score_map: [h, w] float32 at the mask's native resolution.
        mask: [h, w] bool or integer, nonzero where defective.
        class_map: [h, w] int, predicted class ids, 0 is background.
        bootstrap: [B] float64, from `bootstrap_weights`.
        thresholds: `calibration.Thresholds`.
    """

    reads: ClassVar[tuple[str, ...]]

    @classmethod
    def from_example(cls, example: Example) -> Self:
        """Returns the state after this one example."""
        ...

    def merge(self, other: Self) -> Self:
        """Returns the state after the examples of both."""
        ...

    def compute(self) -> dict[str, Estimate]:
        """Returns the estimates by name."""
        ...


def bootstrap_weights(seed: int, index: int, num_samples: int) -> np.ndarray:
    """Returns how often image `index` of the split is drawn in each bootstrap sample.

    [num_samples] float64, Poisson(1): the Poisson bootstrap (Chamandy et al., Estimating
    Uncertainty for Massive Data Streams, 2012), which resamples images without knowing how many
    there are. A function of (seed, index) alone, so neither order nor hosts matter.
    """
    return np.random.default_rng([seed, index]).poisson(1.0, num_samples).astype(np.float64)


def case_weights(example: Example) -> np.ndarray:
    """Returns [1 + B] float64: 1 for the value itself, then the example's bootstrap weights."""
    return np.concatenate([[1.0], example["bootstrap"]])


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> Estimate:
    """Returns the estimate numerator / denominator of [1 + B] sums; NaN where 0 / 0."""
    values = np.asarray(numerator) / np.where(denominator == 0, np.nan, denominator)
    return Estimate(float(values[0]), values[1:])
