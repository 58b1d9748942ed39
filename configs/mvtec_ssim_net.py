"""SSIM_Net with the SSIM loss, after DeeCamp's group 10.

    python -m defect_jax.main --config=configs/mvtec_ssim_net.py \
        --workdir=runs/screw --config.data.root=/path/to/mvtec --config.data.category=screw

A code of 256 channels at 1/32 of the image's size. Theirs: Adam with b1 0.5, 1e-3 divided by 10.
"""

import ml_collections

from configs import mvtec_autoencoder


def get_config() -> ml_collections.ConfigDict:
    config = mvtec_autoencoder.get_config()
    config.method.model = "ssim_net"
    config.method.code_dim = 256

    config.optimizer.b1 = 0.5
    return config
