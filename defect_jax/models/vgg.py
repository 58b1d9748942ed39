"""The features of VGG-16, from weights that the user gives."""

import functools
import pathlib
import zipfile

import jax
import jax.numpy as jnp
import numpy as np

from defect_jax.errors import UserError
from defect_jax.models.layers import max_pool
from defect_jax.ops.convolution import convolve

# The channels of each 3x3 convolution, 0 a 2x2 maximum: configuration D of the paper's Table 1.
_LAYERS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
# Of ImageNet's pixels in [0, 1], by which torchvision's weights expect them normalised.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Weights = tuple[tuple[np.ndarray, np.ndarray], ...]


def vgg16_features(weights: Weights, image: jax.Array) -> jax.Array:
    """The last maps of VGG-16's convolutional part.

    Simonyan and Zisserman 2015, https://arxiv.org/abs/1409.1556.

    Args:
        weights: what `load_vgg16` gives.
        image: [B, H, W, 3] float32 in [0, 1], H and W of at least 32; or grey, [B, H, W, 1].

    Returns:
        [B, H // 32, W // 32, 512] float32, at least 0.

    Raises:
        UserError: the images are smaller.
    """
    if min(image.shape[1:3]) < 32:
        raise UserError(
            f"VGG-16 takes images of at least 32x32 pixels, found {image.shape[1]}x"
            f"{image.shape[2]}: set data.image_size, or no method.backbone_weights"
        )
    x = (jnp.broadcast_to(image, (*image.shape[:3], 3)) - jnp.array(_MEAN)) / jnp.array(_STD)
    layers = iter(weights)
    for channels in _LAYERS:
        if not channels:
            x = max_pool(x)
        else:
            kernel, bias = next(layers)
            x = jax.nn.relu(convolve(x, jnp.asarray(kernel), (1, 1), ((1, 1), (1, 1))) + bias)
    return x


@functools.cache
def load_vgg16(path: str) -> Weights:
    """Reads the weights from an .npz file of torchvision's names and shapes.

    Such a file is what `numpy.savez(path, **{k: v.numpy() for k, v in state_dict.items()})` writes
    of torchvision's VGG-16: `features.<n>.weight` [out, in, 3, 3] and `features.<n>.bias` [out].

    Returns:
        (kernel [3, 3, in, out], bias [out]) of each of the 13 convolutions, float32.

    Raises:
        UserError: no such file, or one that is no .npz or lacks these arrays.
    """
    if not pathlib.Path(path).is_file():
        raise UserError(f"method.backbone_weights {path} is no file: give VGG-16's weights as .npz")
    weights: list[tuple[np.ndarray, np.ndarray]] = []
    before, number = 3, 0
    if not zipfile.is_zipfile(path):  # which an .npz is
        raise UserError(f"method.backbone_weights {path} is no .npz: save torchvision's vgg16 so")
    with np.load(path) as arrays:
        for channels in _LAYERS:
            if not channels:
                number += 1
                continue
            kernel, bias = (arrays.get(f"features.{number}.{part}") for part in ("weight", "bias"))
            shape = (channels, before, 3, 3)
            if kernel is None or bias is None or (kernel.shape, bias.shape) != (shape, (channels,)):
                found = "nothing" if kernel is None else list(kernel.shape)
                raise UserError(
                    f"method.backbone_weights {path}: expected features.{number}.weight "
                    f"{list(shape)} and its bias, found {found}: save torchvision's vgg16"
                )
            weights.append(
                (kernel.transpose(2, 3, 1, 0).astype(np.float32), bias.astype(np.float32))
            )
            before, number = channels, number + 2
    return tuple(weights)
