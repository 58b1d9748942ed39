"""Hard negatives: where a segmenter calls pixels of its training frames defective that are not.

Most of a frame is easy and a few places of it are not, so crops that lie anywhere hardly meet them.
Felzenszwalb et al. 2010, "Object Detection with Discriminatively Trained Part-Based Models",
section 4.4, look for them with the model learned so far, and learn on.
"""

import io
import pathlib

import jax
import ml_collections
import numpy as np
from scipy import ndimage

from defect_jax import distributed
from defect_jax.data import pipeline
from defect_jax.data.examples import Examples
from defect_jax.errors import UserError
from defect_jax.evaluate import Predict, make_predict, predict_tiles
from defect_jax.method import State
from defect_jax.methods import make_method
from defect_jax.paths import write_atomically

# Nearer to a defect than this a false pixel is one of its outline, which the crops around defects
# teach; in pixels of the fitted frame.
_MARGIN = 4
# Of a frame's false pixels so many are kept, drawn evenly, lest one frame outweighs all others.
_MOST = 1000
# Above these a pixel is called defective; fixed, so that `eval.min_log_odds` changes no training.
LOG_ODDS = 0.0

NONE = np.zeros((0, 3), np.int32)


def mistakes_of_phase(
    config: ml_collections.ConfigDict,
    state: State,
    examples: Examples,
    workdir: pathlib.Path,
    start: int,
) -> np.ndarray:
    """The false pixels that the crops of a phase may lie around.

    Looked for where the phase begins and kept as `mistakes/<step>.npy` in the run's folder, where a
    run that goes on in the middle of the phase finds them.

    Args:
        config: reads `data.hard_share` and what `find` does.
        state: at a step of the phase.
        examples: the training images.
        workdir: the run's folder.
        start: the step at which the phase begins.

    Returns:
        [n, 3] int32, see `find`; none in a run's first phase, or without `data.hard_share`.

    Raises:
        UserError: the file is missing or damaged.
    """
    if not config.data.hard_share or not start:
        return NONE
    path = workdir / "mistakes" / f"{start}.npy"
    if int(state.step) > start:
        if not path.is_file():
            raise UserError(f"{path} is missing: restore it, or go back with --step={start}")
        return _read(path)
    single = config.copy_and_resolve_references()
    single.eval.flip_average = False
    predict = make_predict(make_method(single), state)
    found = np.concatenate(distributed.everywhere(lambda: find(single, examples, predict)))
    found = found[np.argsort(found[:, 0], kind="stable")]  # whatever the number of processes
    if distributed.is_first():
        file = io.BytesIO()
        np.save(file, found)
        write_atomically(path, file.getvalue())
        print(f"step {start}: {len(found)} false pixels to learn from", flush=True)
    return found


def _read(path: pathlib.Path) -> np.ndarray:
    try:
        return np.load(io.BytesIO(path.read_bytes())).reshape(-1, 3)
    except Exception as error:  # of any kind, from NumPy's parser
        raise UserError(
            f"{path} is damaged ({error}): restore it, or go back with --step={path.stem}"
        ) from error


def find(config: ml_collections.ConfigDict, examples: Examples, predict: Predict) -> np.ndarray:
    """Where pixels are called defective that lie off all defects.

    Args:
        config: of a segmenter on crops.
        examples: of a split; each process looks at its share of them.
        predict: of the segmenter.

    Returns:
        [n, 3] int32: numbers of examples, rows and columns in their fitted images, of pixels whose
        log-odds of a defect are above `LOG_ODDS`.
    """
    parts = [NONE]
    numbers = range(jax.process_index(), len(examples), jax.process_count())
    predicted = predict_tiles(config, examples, predict)
    for number, (_, prediction) in zip(numbers, predicted, strict=True):
        mask = pipeline.fitted_mask(config.data, examples, number)
        height, width = mask.shape
        called = prediction["score_map"][:height, :width] > LOG_ODDS
        if mask.any():  # else scipy takes distances from the corner
            called &= ndimage.distance_transform_edt(mask == 0) > _MARGIN
        pixels = np.argwhere(called)
        pixels = pixels[:: max(1, -(-len(pixels) // _MOST))]
        parts.append(np.insert(pixels, 0, number, axis=1).astype(np.int32))
    return np.concatenate(parts)
