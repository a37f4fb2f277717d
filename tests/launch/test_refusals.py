"""What cannot work is refused in one line that names the flag and the mend, before anything is rented."""

import json
import os
import shutil
import subprocess

import pytest

from experiments.launch import gcloud
from experiments.launch import pod
from experiments.launch import slices
from experiments.launch import storage


def _refused(capfd, *said):
    """The one line."""
    err = capfd.readouterr().err.strip().splitlines()
    assert len(err) == 1, err
    assert all(word in err[0] for word in said), err[0]


@pytest.mark.parametrize(
    "flag, said",
    [
        ("--name=Nuwa_1", ["--name", "lower-case"]),
        ("--type=v5e-17", ["--type", "v5e-16"]),
        ("--type=v9-16", ["--type", "'v9-16' is unknown", "v5e-16"]),
        ("--type=v5e:4x4", ["--type", "topology", "v5e-16"]),
        ("--type=tpu7x-8", ["--type", "xpk"]),
        ("--zone=uswest4", ["--zone", "us-west4-a"]),
        ("--project=My Project", ["--project", "its id"]),
        ("--workdir=runs/small", ["--workdir", "gs://bucket/folder"]),
        ("--workdir=gs://bucket", ["--workdir", "gs://bucket/folder"]),
        ("--workdir=", ["--workdir is missing"]),
        ("--spots", ["--spots", "--help"]),
        ("--poll=soon", ["--poll"]),
    ],
)
def test_wrong_flags(cloud, capfd, flag, said):
    assert cloud.run("up", flag) == 2
    _refused(capfd, *said)
    assert cloud.calls() == []


@pytest.mark.parametrize(
    "args, said",
    [
        ((), ["--mode=train"]),
        (("--mode=train", "--workdir=x"), ["--workdir belongs before --"]),
        (("--mode=eval",), ["--type", "v5e-8"]),
        (("--mode=train", "--config.typo=1"), ["would not start", "config.typo does not exist"]),
    ],
)
def test_a_run_that_would_not_start(cloud, capfd, args, said):
    assert cloud.run("up", args=args) == 2
    _refused(capfd, *said)
    assert cloud.calls() == []


def test_the_real_package_refuses_its_own_mistakes(capfd, tmp_path):
    where = ["--name=nuwa", "--type=v5e-16", "--zone=us-west4-a", "--project=my-project", "--workdir=gs://bucket/run"]
    flags = [*where, f"--state={tmp_path}", "--dry_run", "--allow_dirty"]
    for wrong, said in (
        ("--config=configs/toons.py:nope", "nope"),
        ("--config.unet.widht=3", "config.unet.widht: unknown key"),
    ):
        assert pod.main(["up", *flags, "--", "--mode=train", wrong]) == 2
        _refused(capfd, "would not start", said)
    assert pod.main(["up", *flags, "--", "--mode=train", "--config=configs/toons.py:tiny"]) == 0


def test_changes_that_no_commit_has(cloud, capfd):
    (cloud.repository / "nuwaxl_jax" / "config.py").write_text("# changed\nvalidate_training = validate = print\n")
    assert cloud.run("up") == 2
    _refused(capfd, "not committed", "nuwaxl_jax/config.py", "--allow_dirty")
    assert cloud.calls() == []
    assert cloud.run("up", "--allow_dirty") == 0
    code = next(cloud.folder.glob("workers/0/nuwaxl/code-*-dirty-*/nuwaxl_jax/config.py"))
    assert code.read_text().startswith("# changed")
    assert cloud.git("stash", "list") == "" and cloud.git("status", "--porcelain") == " M nuwaxl_jax/config.py"


def test_no_gcloud(cloud, capfd, monkeypatch):
    for program in ("git", "sh"):
        (cloud.folder / "bin" / program).symlink_to(shutil.which(program))
    (cloud.folder / "bin" / "gcloud").unlink()
    monkeypatch.setenv("PATH", str(cloud.folder / "bin"))
    assert cloud.run("up") == 2
    _refused(capfd, "gcloud is not on PATH", "cloud.google.com/sdk")


# What gcloud 528 prints where it could be tried here (login), else as reported in public threads.
REFUSALS = {
    "login": (
        "You do not currently have an active account selected.\nPlease run:\n\n  $ gcloud auth login",
        "auth login",
    ),
    "quota": ("Quota limit 'TPUV5sLitepodPerProjectPerZone' has been exceeded. Limit: 0 in zone us-west4-a.", "--zone"),
    "capacity": ('There is no more capacity in the zone "us-west4-a"; you can try in another zone', "--queued"),
    "zone": ("PERMISSION_DENIED: Permission denied on 'locations/us-west9-z' (or it may not exist).", "--zone"),
    "project": ("PERMISSION_DENIED: The caller does not have permission", "--project"),
}


@pytest.mark.parametrize("kind", REFUSALS)
@pytest.mark.parametrize("call", ["accelerator-types describe", "tpu-vm create"])
def test_the_cloud_refuses(cloud, capfd, kind, call):
    line, said = REFUSALS[kind]
    cloud.settings(hosts=4, errors={call: [line]})
    assert cloud.run("up") == 2
    err = capfd.readouterr().err.strip().splitlines()
    assert said in err[0] and "tpu-vm scp" not in cloud.calls()
    told = any("to delete nuwa and stop paying" in line for line in err[1:])
    assert told == (call == "tpu-vm create" and kind == "capacity")  # where something might be there


def test_a_type_that_the_zone_does_not_have(cloud, capfd):
    missing = "NOT_FOUND: Resource 'projects/p/locations/us-west4-a/acceleratorTypes/v5litepod-16' was not found"
    cloud.settings(hosts=4, errors={"accelerator-types describe": [missing]})
    assert cloud.run("up") == 2
    _refused(capfd, "--zone", "v5litepod-16", "accelerator-types list")
    assert "tpu-vm create" not in cloud.calls()


def test_a_slice_of_that_name_is_left_alone(cloud, capfd):
    assert cloud.run("create", args=()) == 0
    capfd.readouterr()
    assert cloud.run("up", f"--state={cloud.state}2") == 2
    _refused(capfd, "--name", "exists already")
    assert "tpu-vm delete" not in cloud.calls()
    assert cloud.run("up", "--queued", "--spot") == 2  # a second thought about one's own
    assert json.loads((cloud.state / "nuwa" / "slice.json").read_text()).get("queued") is None
    (cloud.repository / "nuwaxl_jax" / "main.py").write_text("broken (")  # deleting needs no code
    assert pod.main(["delete", "--name=nuwa", f"--state={cloud.state}"]) == 0
    assert cloud.calls()[-1] == "tpu-vm delete"


def test_a_queue_that_gives_up(cloud, capfd):
    (cloud.folder / "slice.json").write_text("null")
    cloud.settings(hosts=4, polls_until_ready=10**6)
    assert cloud.run("up", "--queued", "--patience=0.3") == 1
    err = capfd.readouterr().err
    assert (
        "still PROVISIONING" in err
        and "--patience" in err
        and "queued-resources delete nuwa" in err
        and "--force" in err
    )


@pytest.mark.parametrize(
    "name, accelerator, image, hosts, devices",
    [  # cloud.google.com/tpu/docs, tables of v3 to v6e
        ("v5e-16", "v5litepod-16", "v2-alpha-tpuv5-lite", 4, 16),
        ("v5litepod-8", "v5litepod-8", "v2-alpha-tpuv5-lite", 1, 8),
        ("v5e-4", "v5litepod-4", "v2-alpha-tpuv5-lite", 1, 4),
        ("v4-8", "v4-8", "tpu-ubuntu2204-base", 1, 4),
        ("v4-32", "v4-32", "tpu-ubuntu2204-base", 4, 16),
        ("v5p-64", "v5p-64", "v2-alpha-tpuv5", 8, 32),
        ("v6e-64", "v6e-64", "v2-alpha-tpuv6e", 16, 64),
        ("v6e-8", "v6e-8", "v2-alpha-tpuv6e", 1, 8),
        ("v3-32", "v3-32", "tpu-ubuntu2204-base", 4, 32),
    ],
)
def test_types(name, accelerator, image, hosts, devices):
    made = slices.Slice("nuwa", name, "us-west4-a", "my-project")
    assert (made.accelerator_type, made.image, made.hosts, made.devices) == (accelerator, image, hosts, devices)


@pytest.mark.parametrize(
    "workdir, path, source",
    [
        ("gs://a-bucket/runs/one/", "/mnt/nuwaxl/a-bucket/runs/one", "gs://a-bucket"),
        ("nfs://10.0.0.2/share/runs", "/mnt/nuwaxl/10.0.0.2-share/runs", "nfs://10.0.0.2/share"),
        ("/mnt/disk/run", "/mnt/disk/run", ""),
    ],
)
def test_places(workdir, path, source):
    place = storage.resolve(workdir)
    assert (place.path, place.source) == (path, source)
    assert place.path.startswith(place.target)


def test_a_lost_node_is_not_taken_for_a_wrong_zone():
    line = "NOT_FOUND: Resource 'projects/p/locations/us-west4-a/nodes/nuwa' was not found"
    assert (
        gcloud.explain(f"WARNING: quota project\nERROR: (gcloud.compute.tpus.tpu-vm.describe) {line}").kind == "absent"
    )
    assert gcloud.explain("ERROR: (gcloud) NOT_FOUND: 'projects/p/locations/us-west9-z' not found").kind == "zone"


def _real_gcloud():
    path = "/usr/bin/gcloud"
    return path if os.path.exists(path) else None


@pytest.mark.slow
@pytest.mark.skipif(_real_gcloud() is None, reason="the real gcloud is not installed")
def test_the_real_gcloud_knows_every_flag(cloud, tmp_path, capfd):
    """Without an account gcloud parses a command, then stops at the login: nothing can be reached or created."""
    for queued in ([], ["--queued", "--spot"], ["--reserved", "--internal_ips", "--network=n", "--subnetwork=s"]):
        assert cloud.run("up", *queued, "--service_account=a@p.iam.gserviceaccount.com", "--delete_when_done") == 0
        (cloud.folder / "starts-0").unlink()
    rows = [json.loads(line) for line in (cloud.folder / "calls.jsonl").read_text().splitlines()]
    seen = {}
    for row in rows:
        flags = tuple(sorted(a.split("=")[0] for a in row if a.startswith("--")))
        seen[(*[a for a in row if not a.startswith("-")][2:4], flags)] = row
    assert len(seen) >= 12
    home = {
        "HOME": str(tmp_path),
        "PATH": "/usr/bin:/bin",
        "CLOUDSDK_CONFIG": str(tmp_path / "nobody"),
        "CLOUDSDK_CORE_CHECK_GCE_METADATA": "false",
        "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "true",
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_TPU": "http://127.0.0.1:9/",
    }
    for row in [*seen.values(), [*rows[0], "--no-such-flag"]]:
        done = subprocess.run(
            [_real_gcloud(), *row], env=home, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        if "--no-such-flag" in row:
            assert done.returncode == 2 and "unrecognized arguments" in done.stderr
        else:
            assert gcloud.explain(done.stderr).kind == "login", (row, done.stderr)
