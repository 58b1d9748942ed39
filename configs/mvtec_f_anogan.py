"""f-AnoGAN: a Wasserstein GAN of good images, then an encoder into its codes.

    python -m defect_jax.main --config=configs/mvtec_f_anogan.py \
        --workdir=runs/screw --config.data.root=/path/to/mvtec --config.data.category=screw

The first phase takes train.num_steps, the encoder's method.encoder_steps.

Expect on screw, with --config.train.num_steps=1000 and --config.method.width=32, a pixel AUROC of
0.38 and an AUPRO of 0.13, within 13 minutes on 2 cores: too few steps for the generator to learn
the bright ground.
"""

import ml_collections

from configs import mvtec_dcgan_autoencoder


def get_config() -> ml_collections.ConfigDict:
    config = mvtec_dcgan_autoencoder.get_config()
    config.method.name = "f_anogan"
    del config.method.consistency, config.method.corruption  # it has neither
    config.method.discriminator = "dcgan"
    config.method.discriminator_learning_rate = 4e-4
    config.method.penalty_weight = 10.0
    config.method.encoder_steps = 1000
    config.method.feature_weight = 1.0

    config.optimizer.learning_rate = 1e-4
    config.optimizer.b1 = 0.0
    config.optimizer.b2 = 0.9
    return config
