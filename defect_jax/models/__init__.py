"""Networks by name, as `config.method` gives it.

The functions here read what a network needs from the config; the networks know nothing of it.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import ml_collections

from defect_jax.devices import AXIS
from defect_jax.errors import UserError, lookup, require, require_within
from defect_jax.method import DTYPES
from defect_jax.models import autoencoder, dcgan, srgan
from defect_jax.models.autoencoder import Autoencoder, Stages
from defect_jax.models.red_net import RedNet
from defect_jax.models.unet import UNet
from defect_jax.models.znet import ZNet
from defect_jax.ops import tiles


def _dtype(config: ml_collections.ConfigDict) -> Any:
    return lookup(DTYPES, config.dtype, "dtype")


def _shared(config: ml_collections.ConfigDict) -> dict[str, Any]:
    return {"dtype": _dtype(config), "axis_name": AXIS}


def _size(config: ml_collections.ConfigDict, name: str) -> int:
    """A field of `config.method` that counts channels or levels."""
    value = getattr(config.method, name)
    require_within(value, 1, math.inf, f"method.{name}")
    return value


def _code_channels(config: ml_collections.ConfigDict, variational: bool) -> int:
    """Of the encoder's result: a variational code has a mean and a log-variance."""
    return _size(config, "code_dim") * (2 if variational else 1)


def _ssim(
    encoder: Stages, decoder: Stages, config: ml_collections.ConfigDict, variational: bool
) -> Autoencoder:
    code_channels = _code_channels(config, variational)
    return Autoencoder(
        autoencoder.SSIMEncoder(encoder, code_channels, variational, **_shared(config)),
        autoencoder.SSIMDecoder(decoder, config.data.channels, **_shared(config)),
        variational,
    )


def _bergmann(config: ml_collections.ConfigDict, variational: bool) -> Autoencoder:
    return Autoencoder(
        autoencoder.BergmannEncoder(_code_channels(config, variational), _dtype(config)),
        autoencoder.BergmannDecoder(config.data.channels, _dtype(config)),
        variational,
    )


def _dcgan(config: ml_collections.ConfigDict, variational: bool) -> Autoencoder:
    width, size = _size(config, "width"), tuple(config.data.image_size)
    code_channels = _code_channels(config, variational)
    return Autoencoder(
        dcgan.Encoder(width, code_channels, **_shared(config)),
        dcgan.Decoder(size, config.data.channels, width, **_shared(config)),
        variational,
    )


def _red_net(config: ml_collections.ConfigDict) -> nn.Module:
    code_dim, skips = _size(config, "code_dim"), config.method.skips
    return RedNet(config.data.channels, code_dim, skips, **_shared(config))


def _unet(
    config: ml_collections.ConfigDict, channels: int, patch_size: int = 1, **more: Any
) -> nn.Module:
    depth = _size(config, "depth")
    step = patch_size * 2**depth
    if config.data.fit == "crop" and tiles.GRID % step:
        raise UserError(
            f"method.depth is {depth} with patches of {patch_size} pixels: tiles begin at "
            f"multiples of {tiles.GRID}, which are no multiples of {patch_size} * 2^{depth} = "
            f"{step}: choose others"
        )
    return UNet(
        width=_size(config, "width"),
        depth=depth,
        num_classes=channels,
        normalization=config.method.normalization,
        patch_size=patch_size,
        **more,
        **_shared(config),
    )


def _segmenting_unet(config: ml_collections.ConfigDict) -> nn.Module:
    return _unet(
        config,
        config.data.num_classes,
        _size(config, "patch_size"),
        residual=config.method.residual,
        supervised_levels=_size(config, "supervised_levels"),
    )


def _znet(config: ml_collections.ConfigDict) -> nn.Module:
    return ZNet(
        config.data.num_classes,
        config.method.activation,
        config.method.gate,
        **_shared(config),
    )


def _sr_resnet(config: ml_collections.ConfigDict) -> nn.Module:
    return srgan.SRResNet(config.data.channels, _size(config, "width"), **_shared(config))


# Networks that rebuild an image: those with a code in the middle, and those without.
CODERS = {
    "ssim_net": functools.partial(_ssim, autoencoder.SSIM_ENCODER, autoencoder.SSIM_DECODER),
    "ssim_net_lite": functools.partial(
        _ssim, autoencoder.SSIM_LITE_ENCODER, autoencoder.SSIM_LITE_DECODER
    ),
    "bergmann": _bergmann,
    "dcgan": _dcgan,
}
RESTORERS = {
    "red_net": _red_net,
    "unet": lambda config: _unet(config, config.data.channels, unit_range=True),
    "sr_resnet": _sr_resnet,
}
DISCRIMINATORS = {"dcgan": dcgan.Discriminator, "srgan": srgan.SRDiscriminator}
SEGMENTERS = {"unet": _segmenting_unet, "znet": _znet}


def make_coder(config: ml_collections.ConfigDict, variational: bool = False) -> Autoencoder:
    """The network with a code that `config.method.model` names.

    Its code has `config.method.code_dim` channels; if it is variational, the encoder gives twice as
    many, mean and log-variance.

    Raises:
        UserError: no network with a code has that name.
    """
    return lookup(CODERS, config.method.model, "method.model")(config, variational)


def make_autoencoder(config: ml_collections.ConfigDict) -> nn.Module:
    """The network, (x [B, H, W, C], train) -> [B, H, W, C], that `config.method.model` names.

    Raises:
        UserError: unknown name.
    """
    name = config.method.model
    require(name, {*CODERS, *RESTORERS}, "method.model")
    return make_coder(config) if name in CODERS else RESTORERS[name](config)


def make_discriminator(config: ml_collections.ConfigDict, normalization: str) -> nn.Module:
    """The network, (x, train) -> (logit [B], features), of `config.method.discriminator`.

    Raises:
        UserError: unknown name.
    """
    network = lookup(DISCRIMINATORS, config.method.discriminator, "method.discriminator")
    return network(_size(config, "width"), normalization, **_shared(config))


def make_segmenter(config: ml_collections.ConfigDict) -> nn.Module:
    """The network, (x, train) -> logits [B, H, W, K], that `config.method.model` names.

    K is `config.data.num_classes`.

    Raises:
        UserError: unknown name.
    """
    return lookup(SEGMENTERS, config.method.model, "method.model")(config)
