"""Every field that all configs share, with its default. Other configs override a few of them.

What each field of `method` means is in the method's docstring (`defect_jax/methods/`), of
`augment` in `defect_jax/data/augment.py`, of `optimizer` in `defect_jax/optim.py`.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """The fields that every config has; `data.name`, sizes and `method` are each config's own."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.profile = False  # write a trace of some training steps to <workdir>/profile
    config.dtype = "float32"  # of the computation; parameters are float32 always

    config.data = ml_collections.ConfigDict()
    config.data.name = ""  # a name of defect_jax.data.datasets.DATASETS
    config.data.root = ""  # the folder of the images, or the .npz file of arrays
    config.data.category = ""  # a category of the dataset, or 'all' for one run each
    config.data.one_model = False  # with category 'all': one run over all of them, not one each
    config.data.image_size = (256, 256)  # height, width as the model sees them
    config.data.channels = 3  # 3 colour, 1 grey
    config.data.num_classes = 2  # background and defects
    config.data.fit = "resize"  # 'pad' keeps the aspect; 'crop' cuts whole frames, data/crops.py
    config.data.frame_height = 0  # pixels; of 'crop', brings frames to it, 0 keeps theirs
    config.data.defect_share = 0.0  # of the crops, around a defect
    config.data.balance_types = False  # of those, as many of each defect type
    config.data.hard_share = 0.0  # of the crops, around a false alarm of the segmenter
    # Where decoded training images stay: 'device', 'memory' (of the host) or 'none' (decoded for
    # every batch); 'auto' takes the first of them that they fit.
    config.data.cache = "auto"
    config.data.cache_dir = ""  # of prepared datasets; '' is ~/.cache/defect_jax/datasets
    config.data.validation_fraction = 0.1  # of the training images, for the thresholds
    config.data.validation_files = ()  # drawn from the seed when the run starts
    config.data.train_digest = ""  # of the training images, written when the run starts

    config.method = ml_collections.ConfigDict()
    config.method.ssim_windows = (11,)
    config.method.smoothing = 0.0
    config.method.top_fraction = 0.0

    config.augment = ml_collections.ConfigDict()
    config.augment.flip_horizontal = False
    config.augment.flip_vertical = False
    config.augment.rotation = 0.0
    config.augment.min_crop = 1.0
    config.augment.max_crop = 1.0  # above 1 images are shrunk and reflected around
    config.augment.paste_probability = 0.0  # of a defect, onto a crop without any
    config.augment.lighting_probability = 0.0
    config.augment.lighting_slope = 0.05
    config.augment.lighting_bias = 10 / 255
    config.augment.gamma = 0.0  # largest logarithm of the exponent
    config.augment.contrast = 0.0  # largest logarithm of the factor
    config.augment.hue = 0.0  # share of a full turn, up to 0.5
    config.augment.blur = 0.0  # largest standard deviation in pixels
    config.augment.noise = 0.0  # largest standard deviation, of values in [0, 1]
    config.augment.jpeg = 0  # lowest quality, 1 to 100

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 0
    config.optimizer.milestones = (0.5, 0.75)
    config.optimizer.decay_factor = 0.1
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 0.0
    config.optimizer.ema_decay = 0.0

    config.train = ml_collections.ConfigDict()
    config.train.batch_size = 16  # over all devices of all hosts
    # Parts in which each device takes its examples, where memory is short: the same step as in one
    # part, unless a network has BatchNorm, which normalises each part by itself; see steps.py.
    config.train.accumulate = 1
    config.train.num_steps = 1000
    config.train.mine_every = 0  # steps; how often false alarms are looked for, for the hard share
    config.train.log_every = 50
    config.train.checkpoint_every = 500
    config.train.max_to_keep = 2  # of the last checkpoints
    config.train.keep_every = 0  # the checkpoint of every so many steps stays too; 0 is off
    config.train.on_nonfinite = "stop"  # a loss or gradient; 'skip' goes on without the step

    config.eval = ml_collections.ConfigDict()
    config.eval.batch_size = 16  # of each process
    config.eval.min_log_odds = 0.0  # above which a segmenter calls a pixel defective
    config.eval.bootstrap_samples = 200
    config.eval.num_shown = 10
    config.eval.threshold_rule = "quantile"  # or 'area', see defect_jax.metrics.calibration
    config.eval.image_quantile = 0.99  # of the normal validation images' scores
    config.eval.pixel_quantile = 0.999  # of their pixels' scores
    config.eval.unflagged_share = 0.99  # 'area': so many validation images have fewer than
    config.eval.max_flagged_pixels = 400  # this many flagged pixels, at native resolution
    config.eval.min_area = 1  # smaller predicted defects go to background; pixels of the file
    config.eval.mm_per_pixel = 0.0  # of the file; above 0, defects are listed in millimetres too
    return config
