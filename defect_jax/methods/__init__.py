"""The table of methods."""

import ml_collections

from defect_jax.errors import lookup
from defect_jax.method import Method
from defect_jax.methods.adversarial import adversarial_autoencoder
from defect_jax.methods.adversarial_segmenter import adversarial_segmenter
from defect_jax.methods.autoencoder import autoencoder
from defect_jax.methods.f_anogan import f_anogan
from defect_jax.methods.segmenter import segmenter
from defect_jax.methods.vae import vae

METHODS = {
    "autoencoder": autoencoder,
    "vae": vae,
    "adversarial_autoencoder": adversarial_autoencoder,
    "f_anogan": f_anogan,
    "segmenter": segmenter,
    "adversarial_segmenter": adversarial_segmenter,
}

# These learn from masks; all others from good images alone.
SUPERVISED = frozenset({"segmenter", "adversarial_segmenter"})


def make_method(config: ml_collections.ConfigDict) -> Method:
    """Builds the method that `config.method.name` names.

    Raises:
        UserError: an unknown method, model or loss.
    """
    return lookup(METHODS, config.method.name, "method.name")(config)
