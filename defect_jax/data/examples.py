"""What every dataset delivers, before decoding."""

from typing import NamedTuple

import numpy as np


class Examples(NamedTuple):
    """N examples of one split, in a fixed order.

    Images and masks stay encoded, as a compressed split fits in memory where a decoded one may
    not; `pipeline` decodes them.
    """

    image: np.ndarray  # [N] object, bytes of a PNG or JPEG file with 8 bits a channel
    mask: np.ndarray  # [N] object, bytes of a one-channel PNG with class ids (0 background);
    #                   empty bytes stand for background everywhere
    label: np.ndarray  # [N] int32, 0 good, 1 defective
    defect_type: np.ndarray  # [N] str, 'good' or the name of the defect
    filename: np.ndarray  # [N] str, unique, relative to the dataset's root, '/' between parts

    def __len__(self) -> int:  # NamedTuple would count its fields
        return len(self.filename)

    def take(self, indices: np.ndarray) -> "Examples":
        """Returns the examples at integer `indices` [M], in that order."""
        return Examples(*(field[indices] for field in self))
