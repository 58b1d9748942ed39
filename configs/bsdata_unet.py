"""A plain U-Net on the pits of BSData, official split, whole images shrunk to 256x512.

    python -m defect_jax.main --config=configs/bsdata_unet.py --workdir=runs/bsdata \
        --config.data.root=/path/to/BSData

Expect a pooled foreground IoU of 0.63, after 25 to 40 minutes on 2 cores.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.data.name = "bsdata"
    config.data.category = "pitting"
    config.data.image_size = (256, 512)
    config.data.split = "official"  # or 'grouped', 'tuning', 'random': see data/bsdata.py
    config.data.fold = 0  # of those three
    config.data.normals = False  # add the safe normal frames to the training images

    config.method.name = "segmenter"
    config.method.model = "unet"
    config.method.width = 16
    config.method.depth = 4
    config.method.normalization = "batch"
    config.method.residual = False
    config.method.supervised_levels = 1
    config.method.patch_size = 1
    config.method.losses = ("cross_entropy", "dice")

    config.augment.flip_horizontal = True
    config.augment.flip_vertical = True
    config.augment.lighting_probability = 0.5
    config.augment.lighting_slope = 0.2
    config.augment.lighting_bias = 0.1

    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.weight_decay = 1e-2
    config.optimizer.ema_decay = 0.99

    config.train.batch_size = 6
    config.train.num_steps = 800
    config.train.checkpoint_every = 100
    config.eval.batch_size = 4
    config.eval.flip_average = False
    return config
