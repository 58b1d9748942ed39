"""ZNet on the pits of BSData, by its authors' protocol: 256x512, a random fifth to test on.

    python -m defect_jax.main --config=configs/bsdata_znet.py --workdir=runs/znet \
        --config.data.root=/path/to/BSData

Theirs trains 50 epochs of batches of two, without augmentation, and reports the epoch that is best
on the test images; here the last step is reported. Masks to learn from are shrunk by the majority
of the area rather than bilinearly, and parameters begin as Flax draws them, not PyTorch.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.data.name = "bsdata"
    config.data.category = "pitting"
    config.data.image_size = (256, 512)
    config.data.split = "random"
    config.data.fold = 7  # the seed of the random split
    config.data.normals = False

    config.method.name = "segmenter"
    config.method.model = "znet"
    config.method.activation = "relu"
    config.method.gate = "relu"
    config.method.losses = ("cross_entropy",)  # of two classes, as their BCELoss

    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "constant"

    config.train.batch_size = 2
    config.train.num_steps = 7900  # 50 epochs of 316 images
    config.train.checkpoint_every = 500
    config.eval.flip_average = False
    return config
