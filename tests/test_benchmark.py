"""That the benchmark compares like with like."""

import importlib.util
import pathlib
import sys

import jax
import numpy as np
import pytest

from configs import mvtec_autoencoder
from defect_jax import checkpoint
from defect_jax.losses.pixel import ssim_residual
from defect_jax.methods import make_method


@pytest.fixture(scope="module")
def benchmark():
    path = pathlib.Path(__file__).parents[1] / "experiments/benchmark.py"
    spec = importlib.util.spec_from_file_location("benchmark", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmark"] = module
    spec.loader.exec_module(module)
    return module


def test_both_evaluations_agree(benchmark):
    ours, reference = benchmark.our_evaluation(6, 128), benchmark.reference_evaluation(6, 128)
    for name in ("pixel_auroc", "pixel_ap", "aupro_30", "aupro_05"):
        assert abs(ours[name] - reference[name]) < 1e-4, name


def test_every_other_map_is_good_and_defects_score_higher(benchmark):
    maps = list(benchmark.draw_maps(4, 128))
    assert [bool(mask.any()) for _, mask in maps] == [False, True, False, True]
    score_map, mask = maps[1]
    assert score_map[mask == 1].mean() > score_map[mask == 0].mean()


@pytest.mark.parametrize("model", ["autoencoder", "unet"])
def test_networks_have_as_many_parameters(benchmark, model):
    config = benchmark.our_config(model, "float32")
    state = checkpoint.abstract_state(config, make_method(config))
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    pytest.importorskip("torch", reason="PyTorch comes with the extra 'bench'")
    network = benchmark.torch_networks()[model]()
    assert sum(parameter.numel() for parameter in network.parameters()) == count


def test_losses_are_the_same(benchmark):
    torch = pytest.importorskip("torch", reason="PyTorch comes with the extra 'bench'")
    x, y = np.random.default_rng(0).random((2, 2, 20, 24, 3), np.float32)
    theirs = benchmark.torch_ssim(*(torch.from_numpy(i).permute(0, 3, 1, 2) for i in (x, y)))
    # PyTorch reflects without repeating the last pixel, so borders differ.
    ours = np.asarray(ssim_residual(x, y))
    np.testing.assert_allclose(theirs[:, 5:-5, 5:-5], ours[:, 5:-5, 5:-5], atol=1e-5)


def test_the_config_is_the_projects_own(benchmark):
    config = benchmark.our_config("autoencoder", "float32")
    assert config.method.to_dict() == mvtec_autoencoder.get_config().method.to_dict()
