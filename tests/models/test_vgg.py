"""VGG-16's features against a plain computation from weights of torchvision's layout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from defect_jax.errors import UserError
from defect_jax.models import vgg

# torchvision's names of the convolutions of `vgg16().features`, and their channels.
NUMBERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
CHANNELS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
POOLED_AFTER = {2, 7, 14, 21, 28}


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    arrays, before = {}, 3
    for number, channels in zip(NUMBERS, CHANNELS, strict=True):
        scale = (2 / (9 * before)) ** 0.5
        kernel = rng.normal(0, scale, (channels, before, 3, 3))
        arrays[f"features.{number}.weight"] = kernel.astype(np.float32)
        arrays[f"features.{number}.bias"] = rng.normal(0, 0.1, channels).astype(np.float32)
        before = channels
    return arrays


def save(path, arrays):
    np.savez(path, **arrays)
    return str(path)


def plain_features(arrays, image):
    """From the layers' definitions, in torchvision's layout [B, C, H, W]."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    x = jnp.moveaxis((image - mean) / std, -1, 1).astype(jnp.float32)
    for number in NUMBERS:
        x = jax.lax.conv_general_dilated(x, arrays[f"features.{number}.weight"], (1, 1), "SAME")
        x = jnp.maximum(x + arrays[f"features.{number}.bias"][:, None, None], 0)
        if number in POOLED_AFTER:
            batch, channels, height, width = x.shape
            x = x.reshape(batch, channels, height // 2, 2, width // 2, 2).max((3, 5))
    return jnp.moveaxis(x, 1, -1)


def test_features_are_those_of_the_layers_one_by_one(arrays, tmp_path):
    weights = vgg.load_vgg16(save(tmp_path / "vgg.npz", arrays))
    image = np.random.default_rng(1).uniform(size=(2, 64, 32, 3)).astype(np.float32)
    features = jax.jit(vgg.vgg16_features)(weights, image)
    assert features.shape == (2, 2, 1, 512)
    expected = jax.jit(plain_features)(arrays, image)
    np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-4)
    assert sum(leaf.size for leaf in jax.tree.leaves(weights)) == 14_714_688


def test_a_file_that_lacks_weights_is_named(arrays, tmp_path):
    with pytest.raises(UserError, match=r"none.npz is no file"):
        vgg.load_vgg16(str(tmp_path / "none.npz"))
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(UserError, match=r"array.npy is no .npz"):
        vgg.load_vgg16(str(tmp_path / "array.npy"))
    del arrays["features.17.weight"]
    with pytest.raises(UserError, match=r"features.17.weight \[512, 256, 3, 3\].*found nothing"):
        vgg.load_vgg16(save(tmp_path / "short.npz", arrays))
