"""Networks by name, as `config.method` gives it.

The functions here read what a network needs from the config; the networks know nothing of it.
"""

from typing import Any

import flax.linen as nn
import ml_collections

from defect_jax.devices import AXIS
from defect_jax.errors import lookup
from defect_jax.method import DTYPES
from defect_jax.models import autoencoder, dcgan, srgan
from defect_jax.models.autoencoder import Autoencoder
from defect_jax.models.red_net import RedNet
from defect_jax.models.unet import UNet


def _dtype(config: ml_collections.ConfigDict) -> Any:
    return lookup(DTYPES, config.dtype, "dtype")


def _shared(config: ml_collections.ConfigDict) -> dict[str, Any]:
    return {"dtype": _dtype(config), "axis_name": AXIS}


def _code_channels(config: ml_collections.ConfigDict, variational: bool) -> int:
    """Of the encoder's result: a variational code has a mean and a log-variance."""
    return config.method.code_dim * (2 if variational else 1)


def _ssim_net(config: ml_collections.ConfigDict, variational: bool) -> Autoencoder:
    return Autoencoder(
        autoencoder.SSIMEncoder(
            autoencoder.SSIM_ENCODER,
            _code_channels(config, variational),
            linear_code=variational,
            **_shared(config),
        ),
        autoencoder.SSIMDecoder(autoencoder.SSIM_DECODER, config.data.channels, **_shared(config)),
        variational,
    )


def _ssim_net_lite(config: ml_collections.ConfigDict, variational: bool) -> Autoencoder:
    return Autoencoder(
        autoencoder.SSIMEncoder(
            autoencoder.SSIM_LITE_ENCODER,
            _code_channels(config, variational),
            linear_code=variational,
            **_shared(config),
        ),
        autoencoder.SSIMDecoder(
            autoencoder.SSIM_LITE_DECODER, config.data.channels, **_shared(config)
        ),
        variational,
    )


def _bergmann(config: ml_collections.ConfigDict, variational: bool) -> Autoencoder:
    return Autoencoder(
        autoencoder.BergmannEncoder(_code_channels(config, variational), _dtype(config)),
        autoencoder.BergmannDecoder(config.data.channels, _dtype(config)),
        variational,
    )


def _dcgan(config: ml_collections.ConfigDict, variational: bool) -> Autoencoder:
    code_channels = _code_channels(config, variational)
    return Autoencoder(
        dcgan.Encoder(config.method.width, code_channels, **_shared(config)),
        dcgan.Decoder(
            tuple(config.data.image_size),
            config.data.channels,
            config.method.width,
            **_shared(config),
        ),
        variational,
    )


def _red_net(config: ml_collections.ConfigDict) -> nn.Module:
    method = config.method
    return RedNet(config.data.channels, method.code_dim, method.skips, **_shared(config))


def _unet(config: ml_collections.ConfigDict) -> nn.Module:
    method = config.method
    return UNet(
        width=method.width,
        depth=method.depth,
        num_classes=config.data.channels,
        normalization=method.normalization,
        unit_range=True,
        **_shared(config),
    )


def _sr_resnet(config: ml_collections.ConfigDict) -> nn.Module:
    return srgan.SRResNet(config.data.channels, config.method.width, **_shared(config))


# Those with a code in the middle, and those without.
CODERS = {
    "ssim_net": _ssim_net,
    "ssim_net_lite": _ssim_net_lite,
    "bergmann": _bergmann,
    "dcgan": _dcgan,
}
RESTORERS = {"red_net": _red_net, "unet": _unet, "sr_resnet": _sr_resnet}
DISCRIMINATORS = {"dcgan": dcgan.Discriminator, "srgan": srgan.SRDiscriminator}
SEGMENTERS = {"unet": UNet}


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
    builder = lookup(CODERS | RESTORERS, config.method.model, "method.model")
    return make_coder(config) if builder in CODERS.values() else builder(config)


def make_discriminator(config: ml_collections.ConfigDict, normalization: str) -> nn.Module:
    """The network, (x, train) -> (logit [B], features), of `config.method.discriminator`.

    Raises:
        UserError: unknown name.
    """
    network = lookup(DISCRIMINATORS, config.method.discriminator, "method.discriminator")
    return network(config.method.width, normalization, **_shared(config))
