"""The configuration files of Ray Serve say the same, and what the code says."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import settings

ROOT = Path(__file__).resolve().parent.parent.parent
FILE = yaml.safe_load((ROOT / "deploy/ray_serve.yaml").read_text())
KUBERNETES = yaml.safe_load((ROOT / "deploy/kuberay.yaml").read_text())
WITHIN = yaml.safe_load(KUBERNETES["spec"]["serveConfigV2"])


def test_kubernetes_runs_the_same_application() -> None:
    """Two files that drift apart are two products."""
    assert WITHIN["applications"] == FILE["applications"]


@pytest.mark.parametrize("told", [FILE, WITHIN], ids=["file", "kubernetes"])
def test_the_target_of_autoscaling_is_a_full_batch(told: dict[str, Any]) -> None:
    """With less, replicas are added whose batches are never full."""
    [application] = told["applications"]
    [replicas] = application["deployments"]
    variables = application["runtime_env"]["env_vars"]
    assert replicas["autoscaling_config"]["target_ongoing_requests"] == int(variables["BATCH_SIZE"])
    assert variables.keys() <= {variable for variable, _, _ in settings.describe()}


@pytest.mark.parametrize("told", [FILE, WITHIN], ids=["file", "kubernetes"])
def test_ray_waits_longer_than_our_own_deadline(told: dict[str, Any]) -> None:
    """Else a caller gets Ray's page in place of our answer."""
    longest = settings.Settings.model_fields["request_timeout_seconds"].default
    assert told["http_options"]["request_timeout_s"] > longest


def test_the_cluster_runs_the_version_that_is_installed() -> None:
    """Machines of different versions of Ray do not speak to each other."""
    pinned = re.search(r"^ray\[serve\]==(\S+)", (ROOT / "requirements-ray.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert KUBERNETES["spec"]["rayClusterConfig"]["rayVersion"] == pinned[1]


def test_a_worker_has_a_gpu_for_a_replica_and_time_to_drain() -> None:
    """A replica that asks for more than a pod has is never placed."""
    [group] = KUBERNETES["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    pod = group["template"]["spec"]
    limits = pod["containers"][0]["resources"]["limits"]
    [application] = WITHIN["applications"]
    assert int(limits["nvidia.com/gpu"]) >= application["args"]["gpus"]
    assert int(limits["cpu"]) > application["args"]["cpus"]
    assert pod["terminationGracePeriodSeconds"] > settings.Settings.model_fields["drain_seconds"].default + 10
