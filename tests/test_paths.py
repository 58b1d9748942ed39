"""Runs and images in an object store, for which a folder on this host stands in."""

import contextlib
import pathlib
import subprocess
import sys
import types

import fsspec
import fsspec.implementations.memory
import jax
import numpy as np
import pytest
from etils.epath import backend
from orbax.checkpoint._src.path import gcs_utils

from configs import bsdata_unet, mvtec_autoencoder
from defect_jax import checkpoint, evaluate, report, run, visualize
from defect_jax.data import builder, datasets
from defect_jax.errors import UserError
from defect_jax.method import State
from defect_jax.paths import check_writable, resolve, to_path, to_writable_path


class Bucket:
    """epath's backend of local files, by which gs://bucket is a folder."""

    def __init__(self, folder: pathlib.Path):
        self.folder = str(folder)

    def __getattr__(self, name: str):
        def call(*arguments, **options):
            arguments = [str(a).replace("gs://bucket", self.folder) for a in arguments]
            found = getattr(backend.os_backend, name)(*arguments, **options)
            if name != "glob":
                return found
            return [path.replace(self.folder, "gs://bucket") for path in found]

        return call


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    monkeypatch.setattr(backend, "tf_backend", Bucket(tmp_path))
    return tmp_path


@pytest.fixture(params=[mvtec_autoencoder, bsdata_unet])
def config(request, shrink):
    return shrink(request.param.get_config())


def test_a_run_in_a_bucket_has_the_config_and_the_images_of_a_local_one(config, bucket, tmp_path):
    local = run.open_run(config, tmp_path / "local", "train")
    (bucket / "images").symlink_to(config.data.root)
    config.data.root = "gs://bucket/images"
    remote = run.open_run(config, to_path("gs://bucket/runs/first"), "train")
    assert remote.data.train_digest == local.data.train_digest
    assert remote.data.validation_files == local.data.validation_files
    assert (bucket / "runs/first/config.json").is_file()
    assert checkpoint.read_config("gs://bucket/runs/first").to_dict() == remote.to_dict()
    again = run.open_run(config, to_path("gs://bucket/runs/first"), "train")
    assert again.to_dict() == remote.to_dict()


def test_results_are_written_to_a_bucket_and_read_from_there(bucket):
    folder = to_path("gs://bucket/run/eval/test")
    rows = [{"filename": 'a "b",\nc.png', "label": 1, "score": 0.25}]
    evaluate._write_csv(folder / "images.csv", list(rows[0]), rows)
    assert evaluate.read_images("gs://bucket/run") == rows
    visualize.save(visualize.score_histogram(np.ones(3), np.ones(3), None), folder / "a/b.png")
    assert (bucket / "run/eval/test/a/b.png").read_bytes().startswith(b"\x89PNG")
    names = {path.name for path in bucket.rglob("*") if path.is_file()}
    assert names == {"images.csv", "b.png"}


def test_a_log_in_a_bucket_has_each_line_once(bucket):
    path = to_path("gs://bucket/run/metrics.jsonl")
    path.parent.mkdir(parents=True)
    for first_step in (0, 1):  # started anew from the checkpoint of step 1
        writer = report.JsonlWriter(path, first_step)
        for step in range(first_step + 1, 4):
            writer.write_scalars(step, {"loss": 0.5 * step})
        assert [row["step"] for row in writer.kept] == list(range(1, first_step + 1))
    assert report.read_metrics(path) == [{"step": n, "loss": 0.5 * n} for n in (1, 2, 3)]
    assert [path.name for path in bucket.rglob("*") if path.is_file()] == ["metrics.jsonl"]


@pytest.fixture
def store(bucket, monkeypatch):
    """Where TensorStore finds the bucket; Orbax asks Google's library what kind of bucket it is."""

    def spec(path: str) -> dict:
        return {"driver": "file", "path": path.replace("gs://bucket", str(bucket))}

    monkeypatch.setattr(gcs_utils, "get_kvstore_for_gcs", spec)
    monkeypatch.setattr(gcs_utils, "is_hierarchical_namespace_enabled", lambda path: False)
    monkeypatch.setitem(sys.modules, "google.cloud", types.SimpleNamespace(storage=None))
    return bucket


def test_checkpoints_in_a_bucket_are_saved_kept_given_up_and_restored(store):
    workdir = "gs://bucket/run"
    checkpoint.write_config(workdir, bsdata_unet.get_config())

    def state(step: int) -> State:
        return State(
            np.int32(step), np.zeros(2, np.uint32), {"w": np.full(99, step, np.float32)}, {}, (), {}
        )

    with checkpoint.manager(workdir, 2, 0) as checkpoints:
        for step in (1, 2, 3):
            checkpoint.save(checkpoints, state(step), [{"loss": 0.5}])
    assert checkpoint.steps(workdir) == [2, 3]
    with checkpoint.manager(workdir, 2, 0) as checkpoints:
        checkpoint.go_back(checkpoints, 2)
        assert checkpoints.latest_step() == 2
    assert checkpoint.went_back_to(workdir) == 2
    restored = checkpoint.restore(workdir, jax.eval_shape(lambda: state(0)))
    jax.tree.map(np.testing.assert_array_equal, restored, state(2))
    assert (store / "run/given_up/0_step_3/state").is_dir()
    (store / "run/checkpoints/2/commit_success.txt").unlink()  # as if it were half written
    assert checkpoint.steps(workdir) == []


def test_checkpoints_in_a_bucket_need_a_library_that_is_named(bucket, monkeypatch):
    monkeypatch.setitem(sys.modules, "google.cloud", None)
    with pytest.raises(UserError, match="pip install google-cloud-storage"):
        checkpoint.steps("gs://bucket/run")


def test_arrays_are_read_from_a_bucket(config, bucket):
    np.savez(bucket / "parts.npz", train_image=np.zeros((2, 16, 32, 3), np.uint8))
    config.data.update(name="arrays", root="gs://bucket/parts.npz", image_size=(16, 32))
    assert len(datasets.load_split(config, "train")) == 2
    config.data.root = "gs://bucket/none.npz"
    with pytest.raises(UserError, match=r"gs://bucket/none\.npz is no file"):
        datasets.load_split(config, "train")


def test_local_paths_stay_as_they_are():
    assert to_path("runs/~a") == pathlib.Path("runs/~a")
    assert to_path("~/runs") == pathlib.Path.home() / "runs"
    with pytest.raises(UserError, match=r"~nobody_at_all/runs: Could not determine home"):
        to_path("~nobody_at_all/runs")
    assert resolve(to_path("runs")) == pathlib.Path.cwd() / "runs"
    assert str(resolve(to_path("gs://bucket/runs"))) == "gs://bucket/runs"


class MemoryStore(fsspec.implementations.memory.MemoryFileSystem):
    """A store of fsspec's in memory that goes by the name of Amazon's."""

    protocol = "s3"

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("s3://").strip("/")


@pytest.fixture
def other_store(monkeypatch):
    """A store as s3fs gives one, but in memory and empty."""
    monkeypatch.setattr(MemoryStore, "store", {})
    monkeypatch.setattr(MemoryStore, "pseudo_dirs", [""])
    fsspec.register_implementation("s3", MemoryStore, clobber=True)
    backend.fsspec_backend._get_filesystem.cache_clear()
    yield fsspec.filesystem("s3")
    fsspec.register_implementation("s3", "s3fs.S3FileSystem", clobber=True)
    backend.fsspec_backend._get_filesystem.cache_clear()


def test_markers_of_folders_in_another_store_are_no_images(other_store):
    """As a store's console leaves them: empty files that have the names of folders."""
    for path in ("b/nut/train/", "b/nut/train/good/", "b/nut/train/good/0.png"):
        other_store.store[f"/{path}"] = fsspec.implementations.memory.MemoryFile(
            other_store, f"/{path}"
        )
    folder = to_path("s3://b/nut/train")
    assert [path.name for path in builder.list_all(folder)] == ["good"]
    assert [path.name for path in builder.list_images(folder / "good")] == ["0.png"]


def test_images_in_another_store_are_those_of_a_local_folder(config, other_store, tmp_path):
    local = run.open_run(config, tmp_path / "local", "train")
    other_store.put(config.data.root, "s3://bucket/images", recursive=True)
    config.data.root = "s3://bucket/images"
    remote = run.open_run(config, tmp_path / "remote", "train")
    assert remote.data.train_digest == local.data.train_digest


@pytest.mark.parametrize("kind", ["az", "hf"])
def test_a_library_that_a_store_needs_is_named(kind, config, monkeypatch):
    def missing(name):
        raise ImportError(f"Install what reads {name}")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    config.data.root = f"{kind}://bucket/images"
    with pytest.raises(UserError, match=f"{kind}://bucket/images needs .*: Install what reads"):
        datasets.load_split(config, "train")


@pytest.mark.parametrize("kind", ["memory", "file", "ftp"])
def test_stores_that_nothing_reads_are_refused(kind, config):
    name = f"{kind}://bucket/images"
    words = f"unknown store in {name} '{kind}': choose one of az, gs, hf, s3"
    config.data.root = name
    for refused in (to_path, to_writable_path):
        with pytest.raises(UserError, match=f"^{words}$"):
            refused(name)
    with pytest.raises(UserError, match=f"^{words}$"):
        datasets.load_split(config, "train")


def test_what_is_written_is_refused_where_nothing_writes(config, other_store):
    name = "s3://bucket/run"
    for refused in (
        checkpoint.load_run,
        checkpoint.steps,
        evaluate.read_images,
        lambda name: run.run(config, name, "train"),
    ):
        with pytest.raises(UserError, match=r"^s3://bucket/run cannot be written"):
            refused(name)
    config.data.cache_dir = name
    with pytest.raises(UserError, match=r"^s3://bucket/run cannot be written"):
        datasets.load_split(config, "train")
    assert not other_store.exists(name)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 KiB, for as long as the test lasts."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no program here mounts a disk to fill")
    if done.returncode:
        pytest.skip(f"no disk to fill can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(disk: pathlib.Path) -> None:
    with contextlib.suppress(OSError), (disk / "rest").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(512))


def write_json(path: pathlib.Path) -> None:
    checkpoint.write_json(path, {"image_auroc": 0.5})


def write_table(path: pathlib.Path) -> None:
    evaluate._write_csv(path, ["filename"], [{"filename": "a.png"}])


def write_figure(path: pathlib.Path) -> None:
    visualize.save(visualize.score_histogram(np.ones(3), np.ones(3), None), path)


def write_log_anew(path: pathlib.Path) -> None:
    report.JsonlWriter(path, 9)


def open_events(path: pathlib.Path) -> None:
    with report.tensorboard(path.parent):
        pass


OLD = '{"step": 1, "loss": 0.5}\n'
WRITERS = [write_json, write_table, write_figure, write_log_anew]


@pytest.mark.parametrize("write", WRITERS)
def test_a_full_disk_is_told_with_the_file_and_the_one_before_stays(small_disk, write):
    path = small_disk / "results"
    path.write_text(OLD)
    fill(small_disk)
    with pytest.raises(UserError) as caught:
        write(path)
    assert str(caught.value) == (
        f"{path} cannot be written: No space left on device: see to the disk and start again"
    )
    assert sorted(one.name for one in small_disk.iterdir()) == ["rest", "results"]
    assert path.read_text() == OLD
    (small_disk / "rest").unlink()
    write(path)
    assert sorted(one.name for one in small_disk.iterdir()) == ["results"]


@pytest.mark.parametrize("write", [*WRITERS, open_events])
def test_a_folder_that_cannot_be_made_is_told_with_the_file(tmp_path, write):
    (tmp_path / "eval").touch()  # where a folder is wanted
    with pytest.raises(UserError, match=f"{tmp_path}/eval.* cannot be written: ") as caught:
        write(tmp_path / "eval/results")
    assert "\n" not in str(caught.value)


def test_a_full_disk_ends_tensorboard_with_its_folder(small_disk):
    fill(small_disk)
    with pytest.raises(UserError, match=rf"in {small_disk} cannot be written: .*No space left"):
        open_events(small_disk / "events")


def test_what_cannot_be_written_is_told_before_the_work(tmp_path):
    check_writable(tmp_path / "new/sheet.png")
    assert [path.name for path in tmp_path.rglob("*")] == ["new"]
    (tmp_path / "file").touch()
    for path, reason in (
        (tmp_path / "new", "is a folder"),
        (tmp_path / "file/sheet.png", "cannot be written"),
        (pathlib.Path("/proc/sheet.png"), "cannot be written"),
    ):
        with pytest.raises(UserError, match=f"{path} {reason}"):
            check_writable(path)
