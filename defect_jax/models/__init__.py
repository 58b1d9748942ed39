"""Networks by name, as `config.method` gives it."""

from defect_jax.models.autoencoder import BergmannNet, SSIMNet
from defect_jax.models.unet import UNet

AUTOENCODERS = {"ssim_net": SSIMNet, "bergmann": BergmannNet}
SEGMENTERS = {"unet": UNet}
