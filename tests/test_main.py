"""The command line: bad input ends in one clear line, and nothing is overwritten."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from configs import bsdata_unet, mvtec_autoencoder, quickstart
from defect_jax import checkpoint, run
from defect_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]


def main(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "defect_jax.main", *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)


def test_bad_input_is_one_line_and_a_status(tmp_path):
    result = main(
        "--config=configs/mvtec_autoencoder.py",
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.root={tmp_path / 'nowhere'}",
    )
    assert result.returncode == 1
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and "nowhere" in lines[0]
    assert not (tmp_path / "run").exists()


def test_an_empty_workdir_is_not_the_current_folder():
    result = main("--config=configs/quickstart.py", "--workdir=")
    assert result.returncode == 1
    assert result.stderr == "error: --workdir is empty: name the run's folder\n"


@pytest.mark.parametrize(
    ("flag", "advice"),
    [
        ("config.train.num_step", "did you mean num_steps?"),
        ("config.eval.tile", "see the config"),
        ("config.train.num_steps.x", "see the config"),
    ],
)
def test_a_field_that_the_config_lacks_is_named(tmp_path, flag, advice):
    """Before there is a config that `run` could look at."""
    result = main("--config=configs/quickstart.py", f"--workdir={tmp_path / 'run'}", f"--{flag}=3")
    assert result.returncode == 1
    (line,) = result.stderr.strip().splitlines()
    field = flag.rpartition(".")[2]
    assert line.startswith(f"error: --{flag}: the config has no field '{field}': {advice}")


@pytest.fixture
def config(shrink):
    return shrink(mvtec_autoencoder.get_config())


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "data.name",
            "cifar",
            "unknown data.name 'cifar': choose one of arrays, bsdata, mvtec, synthetic",
        ),
        ("data.category", "bottle", "part"),
        ("data.root", "", "data.root"),
        ("method.name", "magic", "unknown method.name 'magic': choose one of adversarial"),
        ("method.model", "resnet", "unknown method.model 'resnet': choose one of bergmann"),
        ("method.losses", ("l7",), "unknown method.losses 'l7': choose one of l1, l2, msgms"),
        ("method.residual", "l7", "unknown method.residual 'l7'"),
        ("data.image_size", (100, 100), "128"),
        ("data.image_size", (256,), "data.image_size is (256,): it must be a height and a width"),
        ("data.image_size", (0, 64), "data.image_size is (0, 64): it must be a height"),
        ("data.num_classes", 1, "data.num_classes is 1: it must be from 2 to 256"),
        ("data.num_classes", 257, "data.num_classes is 257"),
        ("seed", -1, "seed is -1: it must be from 0 to 4294967295"),
        ("seed", 2**32, "seed is 4294967296: it must be from 0"),
        ("seed", 2**64, "seed is 18446744073709551616: it must be from 0"),
        (
            "method.name",
            "vae",
            "this config lacks the field 'kl_weight', which others",
        ),
        ("method.name", "f_anogan", "lacks the field 'encoder_steps'"),
        ("method.name", "adversarial_autoencoder", "lacks the field 'reconstruction_weight'"),
        ("method.name", "adversarial_segmenter", "lacks the field 'adversarial_weight'"),
        ("method.model", "red_net", "lacks the field 'skips'"),
        ("method.ssim_windows", ("11",), "method.ssim_windows is ('11',): name odd sizes"),
        ("optimizer.b1", 1.0, "optimizer.b1 is 1: it must be below"),
        ("train.num_steps", 10**10, "10000000000 steps with train.batch_size 4 take 4.0e+10"),
        ("eval.bootstrap_samples", 10**9, "eval.bootstrap_samples is 1000000000"),
        ("train.batch_size", 0, "train.batch_size is 0"),
        ("optimizer.learning_rate", float("inf"), "learning_rate is inf: it must be a finite"),
        ("train.log_every", 0, "train.log_every is 0: it must be at least 1"),
        ("train.max_to_keep", 0, "train.max_to_keep is 0: it must be at least 1"),
        ("train.keep_every", -1, "train.keep_every is -1: it must be 0 or a multiple of"),
        ("train.on_nonfinite", "pray", "unknown train.on_nonfinite 'pray': choose one of skip"),
        ("eval.num_shown", 0, "eval.num_shown is 0: it must be at least 1"),
        ("eval.image_quantile", 1.5, "eval.image_quantile is 1.5: it must lie in (0, 1]"),
        ("data.validation_fraction", 1.5, "data.validation_fraction is 1.5"),
        ("data.fit", "stretch", "unknown data.fit 'stretch'"),
        ("dtype", "float8", "unknown dtype 'float8': choose one of bfloat16, float32"),
        (
            "eval.threshold_rule",
            "oracle",
            "unknown eval.threshold_rule 'oracle': choose one of area",
        ),
    ],
)
def test_a_bad_field_is_named_and_what_is_known_is_listed(config, tmp_path, field, value, message):
    *path, last = field.split(".")
    node = config
    for part in path:
        node = node[part]
    with node.unlocked(), node.ignore_type():
        node[last] = value
    with pytest.raises(UserError) as error:
        run.run(config, tmp_path, "train")
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "category", "field"),
    [("bsdata", "pitting", "split"), ("synthetic", "gear", "synthetic")],
)
def test_a_config_of_other_data_lacks_a_field(config, bsdata_root, tmp_path, name, category, field):
    config.data.update(name=name, category=category, root=str(bsdata_root))
    with pytest.raises(UserError, match=f"lacks the field '{field}'"):
        run.run(config, tmp_path, "train")
    assert not list(tmp_path.iterdir())


def test_a_bad_bsdata_config_writes_nothing_either(shrink, tmp_path):
    config = shrink(bsdata_unet.get_config())
    config.data.split = "offical"
    with pytest.raises(UserError, match=r"unknown data.split 'offical': choose one of grouped"):
        run.run(config, tmp_path, "train")
    assert not list(tmp_path.iterdir())


def test_all_categories_do_not_go_into_the_folder_of_one(config, tmp_path):
    checkpoint.write_config(tmp_path, config)
    config.data.category = "all"
    with pytest.raises(UserError, match="holds a run of one category"):
        run.run(config, tmp_path, "train")


def test_empty_train_names_the_folder(config, mvtec_root, tmp_path):
    root = tmp_path / "images"
    shutil.copytree(mvtec_root, root)
    for path in (root / "part/train/good").iterdir():
        path.unlink()
    config.data.root = str(root)
    with pytest.raises(UserError, match="train/good"):
        run.run(config, tmp_path / "run", "train")


def test_too_few_images_to_hold_one_out(config, mvtec_root, tmp_path):
    root = tmp_path / "images"
    shutil.copytree(mvtec_root, root)
    for path in sorted((root / "part/train/good").iterdir())[1:]:
        path.unlink()
    config.data.root = str(root)
    with pytest.raises(UserError, match="1 good training images: holding out 1"):
        run.run(config, tmp_path / "run", "train")


def test_a_validation_image_that_is_gone_is_named(config, mvtec_root, tmp_path):
    root = tmp_path / "images"
    shutil.copytree(mvtec_root, root)
    config.data.root = str(root)
    opened = run.open_run(config, tmp_path / "run", "train")
    (root / "part" / opened.data.validation_files[0]).unlink()
    with pytest.raises(UserError, match=opened.data.validation_files[0]):
        run.run(config, tmp_path / "run", "train")


@pytest.mark.parametrize("content", ['{"seed": ', "{}", "7", '{"data": 1}', "[" * 10**5, "\ud800"])
def test_a_damaged_config_is_named(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content.encode(errors="surrogatepass"))
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        run.open_run(quickstart.get_config(), tmp_path, "train")


def test_all_categories_give_a_table_with_their_mean(config, mvtec_root, tmp_path, capsys):
    root = tmp_path / "images"
    for name in ("left", "right"):
        shutil.copytree(mvtec_root / "part", root / name)
    config.data.update(root=str(root), category="all", image_size=(32, 64))
    config.method.update(model="ssim_net", code_dim=4)
    results = run.run(config, tmp_path / "runs", "train")
    assert list(results) == ["left", "right"]
    table = capsys.readouterr().out.strip().splitlines()[-4:]
    mean = (results["left"]["pixel_auroc"] + results["right"]["pixel_auroc"]) / 2
    assert table[-1].lower().startswith("mean") and f"{mean:.3f}" in table[-1]
    assert checkpoint.read_config(tmp_path / "runs/left").data.category == "left"
    assert (tmp_path / "runs/results.json").is_file()
    assert not (tmp_path / "runs/config.json").exists()
