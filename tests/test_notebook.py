"""The analysis notebook runs on a finished run and shows what it promises."""

import pathlib

import nbclient
import nbformat
import pytest

from configs import mvtec_autoencoder
from defect_jax import run

NOTEBOOK = pathlib.Path(__file__).parents[1] / "experiments/notebooks/analysis.ipynb"


@pytest.fixture(scope="module")
def cells(shrink, tmp_path_factory):
    config = shrink(mvtec_autoencoder.get_config())
    config.data.image_size = (32, 64)
    config.method.update(model="ssim_net", code_dim=4)
    workdir = tmp_path_factory.mktemp("notebook")
    run.run(config, workdir, "train")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEFECT_JAX_RUN", str(workdir))
        notebook = nbformat.read(NOTEBOOK, as_version=4)
        nbclient.NotebookClient(notebook, timeout=300).execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_it_shows_figures_scores_and_images(cells):
    text = "".join(output.get("text", "") for cell in cells for output in cell.outputs)
    assert "autoencoder on mvtec 'part', step 2" in text
    assert "image_auroc" in text and "spot" in text
    pictures = [o for cell in cells for o in cell.outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 2


def test_it_is_stored_without_output():
    stored = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert not any(line.startswith("def ") for cell in code for line in cell.source.splitlines())
