"""Score histograms: one bounded table from which the ROC, PR and PRO curves follow."""

import dataclasses

import numpy as np

from defect_jax.errors import UserError

NORMAL, DEFECTIVE, REGION = range(3)
_CURVE_POINTS = 1000


@dataclasses.dataclass(frozen=True)
class ScoreHistogram:
    """How many pixels (or images) have each score.

    Exact, one row per distinct score, up to `capacity` rows; beyond that, neighbouring rows are
    joined into bins of about equal mass. Joining looks at the order of the scores and never at
    their values, so every curve is invariant to a strictly increasing rescaling of the scores. One
    compaction gives a bin of several scores at most about 16 / `capacity` of any column, so it
    moves the area under the ROC curve by less than 8 / `capacity`; in practice by far less.

    Attributes:
        scores: [n] float32, ascending and distinct. A joined bin carries its highest score, so
            that a threshold read from the table never flags more than it should.
        counts: [n, ..., 3] float64, weights of (normal pixels, defective pixels, regions). A
            pixel of a connected region C adds 1 / |C| to the last column, so that each region
            weighs 1 in all. Axes between are resamplings of the same examples.
        capacity: the most rows the table keeps.
    """

    scores: np.ndarray
    counts: np.ndarray
    capacity: int

    @classmethod
    def from_scores(cls, scores: np.ndarray, counts: np.ndarray, capacity: int) -> "ScoreHistogram":
        """Returns the table of scores [m] in any order and their counts [m, ..., 3].

        Raises:
            UserError: a score is NaN.
        """
        scores = np.asarray(scores, np.float32)
        if np.isnan(scores).any():
            raise UserError(
                f"{np.isnan(scores).sum()} of {scores.size} scores are NaN: "
                "restore a checkpoint from before the parameters diverged"
            )
        order = np.argsort(scores)
        return _tabulate(scores[order], counts.take(order, axis=0), capacity)

    def compact(self, capacity: int) -> "ScoreHistogram":
        """Returns the table with at most `capacity` rows."""
        return _tabulate(self.scores, self.counts, capacity)


def merge(a: ScoreHistogram, b: ScoreHistogram) -> ScoreHistogram:
    """Returns the table of both; `a` and `b` agree in capacity and in the axes of `counts`."""
    scores = np.concatenate([a.scores, b.scores])
    counts = np.concatenate([a.counts, b.counts])
    # A stable sort recognises the two sorted runs and merges them in linear time.
    order = np.argsort(scores, kind="stable")
    return _tabulate(scores[order], counts.take(order, axis=0), a.capacity)


def _tabulate(scores: np.ndarray, counts: np.ndarray, capacity: int) -> ScoreHistogram:
    """Adds up equal neighbours of ascending scores [m], then joins rows down to capacity."""
    is_start = np.ones(len(scores), bool)
    is_start[1:] = scores[1:] != scores[:-1]
    starts = np.flatnonzero(is_start)
    if len(starts) > capacity:
        grouped = counts.reshape(len(counts), -1, 3)
        mean = np.full(grouped.shape[1], 1 / grouped.shape[1]) @ grouped
        ends = _bin_ends(np.add.reduceat(mean, starts, axis=0), capacity // 2 - 1)
        starts = starts[np.append(0, ends[:-1] + 1)]
    if len(starts) < len(scores):
        scores = scores[np.append(starts[1:], len(scores)) - 1]
        flat = np.add.reduceat(counts.reshape(len(counts), -1), starts, axis=0)
        counts = flat.reshape(len(starts), *counts.shape[1:])
    return ScoreHistogram(scores, counts, capacity)


def _bin_ends(counts: np.ndarray, num_cells: int) -> np.ndarray:
    """Returns the last row of each bin, at most 2 * num_cells + 2 bins, for counts [n, 3].

    The cumulated mass is cut into equal cells, and a bin ends at the heaviest row of each. Heavy
    rows are mostly the bins of an earlier compaction: ending there keeps them where they are, or a
    table compacted after every image would drift upwards a little each time. A row that outweighs
    a cell stays alone.
    """
    mass = _mass(counts)
    mass *= num_cells / mass.sum()
    cell = np.floor(np.cumsum(mass) - mass / 2)
    starts = np.flatnonzero(np.diff(cell, prepend=-1))
    heaviest = np.maximum.reduceat(mass, starts)
    rows = np.flatnonzero(mass == np.repeat(heaviest, np.diff(starts, append=len(mass))))
    is_end = np.zeros(len(mass), bool)
    is_end[rows[np.diff(cell[rows], append=np.inf) > 0]] = True
    is_end[:-1] |= mass[1:] >= 1
    is_end[-1] = True
    return np.flatnonzero(is_end)


def _mass(counts: np.ndarray) -> np.ndarray:
    """Returns each row's mass [n]: its share of each column, and of the logarithm of the rank.

    The last makes bins at rank r from the top no wider than a fixed share of r. There lie the PR
    curve and the thresholds, and a table of good images alone would keep too few rows there for
    the defective ones that are merged into it later.
    """
    totals = counts.sum(axis=0)
    shares = counts @ (1 / np.where(totals > 0, totals, 1))
    log_rank = np.log1p(np.cumsum((counts[:, NORMAL] + counts[:, DEFECTIVE])[::-1]))[::-1]
    return shares - np.diff(log_rank, append=0) / log_rank[0]


def quantile(h: ScoreHistogram, q: float) -> float:
    """Returns the q-quantile of all scores by NumPy's method 'higher', for counts [n, 3].

    At most a share 1 - q of the scores lie above it.
    """
    below = np.cumsum(h.counts[:, NORMAL] + h.counts[:, DEFECTIVE])
    row = np.searchsorted(below, np.ceil(q * (below[-1] - 1)), side="right")
    return float(h.scores[min(row, len(h.scores) - 1)])


def _descending(h: ScoreHistogram) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (rows, cumulated rows, totals), highest score first, columns on the first axis."""
    rows = np.moveaxis(h.counts[::-1], -1, 0)
    return rows, np.cumsum(rows, axis=1), rows.sum(axis=1)


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divides; NaN where the denominator is 0."""
    return np.divide(numerator, np.where(denominator == 0, np.nan, denominator))


def auroc(h: ScoreHistogram) -> np.ndarray:
    """Returns the area [...] under the ROC curve, in [0, 1]; tied scores count half.

    NaN where there is no positive or no negative.
    """
    rows, cumulated, totals = _descending(h)
    area = (rows[NORMAL] * (cumulated[DEFECTIVE] - rows[DEFECTIVE] / 2)).sum(axis=0)
    return _divide(area, totals[NORMAL] * totals[DEFECTIVE])


def average_precision(h: ScoreHistogram) -> np.ndarray:
    """Returns the average precision [...], in [0, 1]: the sum of (R_n - R_{n-1}) P_n.

    Steps, not trapezoids, which are too optimistic (Davis & Goadrich, ICML 2006). NaN where
    there is no positive.
    """
    rows, cumulated, totals = _descending(h)
    flagged = cumulated[NORMAL] + cumulated[DEFECTIVE]
    precision = cumulated[DEFECTIVE] / np.where(flagged > 0, flagged, 1)
    return _divide((rows[DEFECTIVE] * precision).sum(axis=0), totals[DEFECTIVE])


def f1_max(h: ScoreHistogram) -> np.ndarray:
    """Returns the highest F1 [...] over all thresholds, in [0, 1]; NaN without positives."""
    _, cumulated, totals = _descending(h)
    total = totals[DEFECTIVE]
    flagged = cumulated[NORMAL] + cumulated[DEFECTIVE]
    return _divide(2 * cumulated[DEFECTIVE], np.where(total > 0, flagged + total, 0)).max(axis=0)


def aupro(h: ScoreHistogram, max_fpr: float) -> np.ndarray:
    """Returns the area [...] under the PRO curve up to `max_fpr`, divided by it, in [0, 1].

    PRO(t) is the mean over connected regions C of |C and {s > t}| / |C|; FPR(t) counts all normal
    pixels, those of good images too. Trapezoids, with an interpolated end point (Bergmann et al.,
    The MVTec Anomaly Detection Dataset, IJCV 2021). NaN without regions or without
    normal pixels.
    """
    rows, cumulated, totals = _descending(h)
    fpr_step, pro_step = _divide(rows[[NORMAL, REGION]], totals[[NORMAL, REGION], None])
    fpr, pro = _divide(cumulated[[NORMAL, REGION]], totals[[NORMAL, REGION], None])
    left = fpr - fpr_step
    width = np.clip(max_fpr - left, 0, fpr_step)
    share = width / np.where(fpr_step == 0, 1, fpr_step)
    height = pro - pro_step + pro_step * share / 2
    return (width * height).sum(axis=0) / max_fpr


def roc_curve(h: ScoreHistogram) -> tuple[np.ndarray, np.ndarray]:
    """Returns (false positive rate, true positive rate) for plots, for counts [n, 3].

    Both [k] with k at most about 1000, ascending from 0 to 1; empty where undefined.
    """
    return _rate_curve(h, NORMAL, DEFECTIVE)


def pro_curve(h: ScoreHistogram) -> tuple[np.ndarray, np.ndarray]:
    """Returns (false positive rate, per-region overlap), else like `roc_curve`."""
    return _rate_curve(h, NORMAL, REGION)


def pr_curve(h: ScoreHistogram) -> tuple[np.ndarray, np.ndarray]:
    """Returns (recall, precision) for plots, for counts [n, 3].

    Both [k] with k at most about 1000, recall ascending from 0 to 1; empty without defective ones,
    or without normal ones, where it would say nothing. To be drawn as steps that hold the precision
    of their right end, as `average_precision` sums them.
    """
    _, cumulated, totals = _descending(h)
    if totals[DEFECTIVE] == 0 or totals[NORMAL] == 0:
        return np.empty(0), np.empty(0)
    precision = cumulated[DEFECTIVE] / (cumulated[NORMAL] + cumulated[DEFECTIVE])
    recall = cumulated[DEFECTIVE] / totals[DEFECTIVE]
    return _thin(np.append(0, recall), np.append(precision[0], precision))


def _rate_curve(h: ScoreHistogram, x: int, y: int) -> tuple[np.ndarray, np.ndarray]:
    _, cumulated, totals = _descending(h)
    if totals[x] == 0 or totals[y] == 0:
        return np.empty(0), np.empty(0)
    return _thin(np.append(0, cumulated[x] / totals[x]), np.append(0, cumulated[y] / totals[y]))


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keeps points evenly spaced along the curve, the first and the last among them."""
    if len(x) <= _CURVE_POINTS:
        return x, y
    length = np.cumsum(np.abs(np.diff(x, prepend=x[0])) + np.abs(np.diff(y, prepend=y[0])))
    marks = np.searchsorted(length, np.linspace(0, length[-1], _CURVE_POINTS - 1))
    keep = np.unique(np.append(marks, len(x) - 1))
    return x[keep], y[keep]
