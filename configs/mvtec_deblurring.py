"""A U-Net that sharpens blurred images, taught on good ones.

    python -m defect_jax.main --config=configs/mvtec_deblurring.py \
        --workdir=runs/screw --config.data.root=/path/to/mvtec --config.data.category=screw

At test time it sees the image blurred too.

Expect on screw, with --config.train.num_steps=1000, a pixel AUROC of 0.97 and an AUPRO of 0.90,
within 15 minutes on 2 cores.
"""

import ml_collections

from configs import mvtec_denoising_autoencoder


def get_config() -> ml_collections.ConfigDict:
    config = mvtec_denoising_autoencoder.get_config()
    config.method.corruption.name = "blur"
    config.method.corruption.strength = 3.0
    return config
