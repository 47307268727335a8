"""A fleet of CPU replicas under Ray Serve on this machine, for the benchmark and the tests that drive it.

Deploys ``deploy/ray_serve.yaml`` by ``serve deploy``, with CPUs in place of GPUs. Its own Ray, whose
processes end with this one. Prints ``ready`` once the application runs; then answers lines on stdin:
``report`` with a line of JSON, ``scale N`` at once (0: none while
nobody asks), ``wait N`` once N replicas run. Ends when stdin does.

Run by hand: ``out/ray/bin/python -m benchmarks.ray_server --port 8000``.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import yaml
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError

ROOT = Path(__file__).resolve().parent.parent
APPLICATION = "batchmux"


def config(port: int, replicas: int, cpus: float) -> dict[str, Any]:
    """The file of the repository for this machine."""
    told: dict[str, Any] = yaml.safe_load((ROOT / "deploy/ray_serve.yaml").read_text())
    told["http_options"] |= {"host": "127.0.0.1", "port": port}
    [application] = told["applications"]
    del application["runtime_env"]  # what replicas are told is in this process's environment
    application["args"] = {"gpus": 0, "cpus": cpus, "ingress_cpus": 0.1}
    set_replicas(told, replicas)
    return told


def set_replicas(told: dict[str, Any], count: int) -> None:
    [deployment] = told["applications"][0]["deployments"]
    bounds = {"min_replicas": count, "max_replicas": max(count, 1)}
    deployment["autoscaling_config"] |= {**bounds, "upscale_delay_s": 0, "downscale_delay_s": 0}


def deploy(told: dict[str, Any], folder: Path, dashboard: int) -> None:
    file = folder / "serve.yaml"
    file.write_text(yaml.safe_dump(told))
    serve_command = Path(sys.executable).parent / "serve"
    command = [str(serve_command), "deploy", "-a", f"http://127.0.0.1:{dashboard}", str(file)]
    subprocess.run(command, check=True, stdout=sys.stderr)


def wait_for(replicas: int, seconds: float = 180.0) -> None:
    """Raises ``TimeoutError`` unless so many run in time, and nothing is starting or stopping."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        application = serve.status().applications.get(APPLICATION)
        if application is not None:
            states = application.deployments["Replica"].replica_states if application.deployments else {}
            settled = {state: count for state, count in states.items() if count}
            if application.status == "RUNNING" and settled == ({"RUNNING": replicas} if replicas else {}):
                return
            if application.status == "DEPLOY_FAILED":
                raise RuntimeError(application.message)
        time.sleep(0.25)
    raise TimeoutError(f"{serve.status()}")


def report() -> dict[str, Any]:
    """What each replica and the ingress have counted, and the replicas' process ids.

    One that has died is left out; for a moment after its end it is still asked.
    """
    try:
        asked = serve.get_deployment_handle("Replica", APPLICATION).broadcast("report")
        told = asked.results(return_exceptions=True)
    except DeploymentUnavailableError:  # scaled to none
        told = []
    replicas = [one for one in told if not isinstance(one, RayActorError)]
    [ingress] = serve.get_deployment_handle("Ingress", APPLICATION).broadcast("counts").results()
    return {
        "replicas": {
            told.name.rpartition(":")[2]: {
                "batch_sizes": dict(told.stats.batch_sizes),
                "counts": told.health.counts,
                "loads": told.stats.models.loads,
            }
            for told in replicas
        },
        "ingress": ingress,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--cpus", type=float, default=2)
    options = parser.parse_args()
    # What `ray start` would find in its environment; nobody but this machine can reach it.
    os.environ |= {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        with socket.create_server(("127.0.0.1", 0)) as free:
            dashboard = free.getsockname()[1]
        ray.init(
            "local",
            num_cpus=options.cpus,
            object_store_memory=300 * 2**20,
            dashboard_host="127.0.0.1",
            dashboard_port=dashboard,
            include_dashboard=True,
            _temp_dir=folder,
            log_to_driver=False,
        )
        told = config(options.port, options.replicas, (options.cpus - 0.2) / options.replicas)
        deploy(told, Path(folder), dashboard)
        wait_for(options.replicas)
        print("ready", flush=True)
        for line in sys.stdin:
            word, _, argument = line.strip().partition(" ")
            if word == "report":
                print(json.dumps(report()), flush=True)
            elif word == "scale":
                set_replicas(told, int(argument))
                deploy(told, Path(folder), dashboard)
                print("scaling", flush=True)
            elif word == "wait":
                wait_for(int(argument))
                print("there", flush=True)
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
