"""What every dataset delivers, before decoding."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Examples:
    """N examples of one split, in a fixed order.

    Images and masks stay encoded, as a compressed split fits in memory where a decoded one may
    not; `pipeline` decodes them.

    Attributes:
        image: [N] object, bytes of a PNG or JPEG file with 8 bits a channel.
        mask: [N] object, bytes of a one-channel PNG with class ids (0 is background); empty bytes
            stand for background everywhere.
        label: [N] int32, 0 good, 1 defective.
        defect_type: [N] str, 'good' or the name of the defect.
        filename: [N] str, unique, relative to the dataset's root, '/' between parts.
    """

    image: np.ndarray
    mask: np.ndarray
    label: np.ndarray
    defect_type: np.ndarray
    filename: np.ndarray

    def __len__(self) -> int:
        return len(self.filename)

    def take(self, indices: np.ndarray) -> "Examples":
        """Returns the examples at integer `indices` [M], in that order."""
        fields = dataclasses.fields(self)
        return Examples(**{f.name: getattr(self, f.name)[indices] for f in fields})
