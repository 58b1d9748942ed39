"""A denoising autoencoder: a U-Net that removes coarse noise, after Kascenas et al. 2022.

    python -m defect_jax.main --config=configs/mvtec_denoising_autoencoder.py \
        --workdir=runs/screw --config.data.root=/path/to/mvtec --config.data.category=screw

Other noises: --config.method.corruption.name=white_noise or salt_pepper (whose strength is the
share of pixels that are turned).

Expect on screw, with --config.train.num_steps=1000, a pixel AUROC of 0.96 and an AUPRO of 0.83,
within 9 minutes on 2 cores.
"""

import ml_collections

from configs import mvtec_autoencoder


def get_config() -> ml_collections.ConfigDict:
    config = mvtec_autoencoder.get_config()
    config.method.model = "unet"
    del config.method.code_dim  # it has no code
    config.method.width = 16
    config.method.depth = 4
    config.method.normalization = "batch"
    config.method.losses = ("l2",)
    config.method.residual = "l2"
    config.method.corruption.name = "coarse_noise"
    config.method.corruption.strength = 0.2
    return config
