"""The table of metrics, and what evaluation needs beside it."""

from defect_jax.metrics.anomaly import (
    BrightnessRanking,
    Calibrated,
    ImageRanking,
    PixelRanking,
    is_flagged,
)
from defect_jax.metrics.calibration import RULES, Calibration, Thresholds
from defect_jax.metrics.detection import Detection
from defect_jax.metrics.metric import Estimate, Example, Metric, bootstrap_weights
from defect_jax.metrics.segmentation import Segmentation

METRICS: dict[str, type[Metric]] = {
    "image_ranking": ImageRanking,
    "brightness_ranking": BrightnessRanking,
    "pixel_ranking": PixelRanking,
    "segmentation": Segmentation,
    "detection": Detection,
    "calibrated": Calibrated,
}

__all__ = [
    "METRICS",
    "RULES",
    "BrightnessRanking",
    "Calibrated",
    "Calibration",
    "Detection",
    "Estimate",
    "Example",
    "ImageRanking",
    "Metric",
    "PixelRanking",
    "Segmentation",
    "Thresholds",
    "bootstrap_weights",
    "is_flagged",
]
