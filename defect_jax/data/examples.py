"""What every dataset delivers."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from defect_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Examples:
    """N examples of one split, in a fixed order.

    Images and masks of files stay encoded, as a compressed split fits in memory where a decoded
    one may not; `pipeline` decodes them. Those of a dataset of arrays are decoded already.

    Attributes:
        image: [N] object, bytes of a PNG or JPEG file with 8 bits a channel; or decoded, uint8
            [N, H, W, C].
        mask: [N] object, bytes of a one-channel PNG with class ids (0 is background), empty bytes
            for background everywhere; or decoded, uint8 [N, H, W].
        label: [N] int32, 0 good, 1 defective.
        defect_type: [N] str, 'good' or the name of the defect.
        filename: [N] str, unique, relative to the dataset's root, '/' between parts.
    """

    image: np.ndarray
    mask: np.ndarray
    label: np.ndarray
    defect_type: np.ndarray
    filename: np.ndarray

    @property
    def is_decoded(self) -> bool:
        """Whether images and masks are arrays."""
        return self.image.dtype == np.uint8

    def __len__(self) -> int:
        return len(self.filename)

    def take(self, indices: np.ndarray) -> "Examples":
        """Returns the examples at integer `indices` [M], in that order."""
        fields = dataclasses.fields(self)
        return Examples(**{f.name: getattr(self, f.name)[indices] for f in fields})


def concatenate(parts: Sequence[Examples]) -> Examples:
    """Returns the examples of one part after those of another.

    Raises:
        UserError: decoded ones of several shapes, or decoded and encoded ones.
    """
    shapes = sorted({part.image.shape[1:] for part in parts})
    if len(shapes) > 1:
        found = " and ".join(str(list(shape)) if shape else "of files" for shape in shapes)
        raise UserError(f"images {found} cannot be joined: bring all arrays to one shape")
    names = [field.name for field in dataclasses.fields(Examples)]
    return Examples(**{n: np.concatenate([getattr(part, n) for part in parts]) for n in names})
