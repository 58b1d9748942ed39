"""The residual U-Net on crops of BSData, trained against a discriminator of masks.

    python -m defect_jax.main --config=configs/bsdata_adversarial.py --workdir=runs/bsdata \
        --config.data.root=/path/to/BSData

The discriminator is as wide as the U-Net, and takes crops of multiples of 32 pixels. With
--config.method.adversarial_weight=0 the U-Net learns as in bsdata_residual_unet.py. On a fold of
training frames the weight made no difference: a pooled foreground IoU of 0.763 with it, of 0.752
and 0.764 without (see experiments/RESULTS.md). Not measured on the official split.
"""

import ml_collections

from configs import bsdata_residual_unet


def get_config() -> ml_collections.ConfigDict:
    config = bsdata_residual_unet.get_config()
    config.method.name = "adversarial_segmenter"
    config.method.discriminator = "dcgan"
    config.method.adversarial_weight = 0.1
    return config
