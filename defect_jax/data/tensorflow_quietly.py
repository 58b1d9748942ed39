"""TensorFlow, without the lines it prints to standard error while it is imported.

No setting of TensorFlow 2.21 holds those back, as they come before its log is set up.
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Holds back what is written to standard error; shows it if an exception is raised."""
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(saved, held.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)


os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # its information lines later on

with _quiet_stderr():
    import tensorflow as tf
    import tensorflow_datasets as tfds

    # TensorFlow only reads and decodes here; left alone it would reserve the accelerator's memory.
    tf.config.set_visible_devices([], "GPU")

__all__ = ["tf", "tfds"]
