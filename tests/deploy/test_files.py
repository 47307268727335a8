"""The files of ``deploy/`` agree with one another and with the settings; nobody runs Docker to find out."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import settings
from pipelines.registry import catalog
from tests.deploy.nginx_file import Directive, parse
from tests.test_readme import dangling, fenced

ROOT = Path(__file__).resolve().parent.parent.parent
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"] == "batchmux"}
WORKERS = {name for name, service in OURS.items() if service["environment"].get("STANDALONE_MODE") == "1"}
PROMETHEUS = yaml.safe_load((DEPLOY / "monitoring/prometheus.yml").read_text())
NGINX = (DEPLOY / "nginx.conf").read_text()
SCRIPT = (DEPLOY / "multi_gpu.sh").read_text()

# https://github.com/compose-spec/compose-spec, as far as it is used here.
KEYS = {
    *("build", "command", "deploy", "environment", "healthcheck", "image", "ports", "profiles", "restart"),
    *("stop_grace_period", "volumes"),
}


def default(name: str) -> Any:
    return settings.Settings.model_fields[name].default


def unset(value: str) -> str:
    """What Compose makes of it where the shell sets nothing."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)


def test_compose_holds_the_services_of_its_profiles() -> None:
    """Without a profile: one worker, of a model that needs neither a GPU nor a download."""
    profiles = {name: service.get("profiles", []) for name, service in SERVICES.items()}
    assert profiles == {
        "worker": [],
        "worker-2": ["gateway"],
        "gpu": ["gpu"],
        "gateway": ["gateway"],
        "prometheus": ["monitoring"],
        "grafana": ["monitoring"],
    }
    chosen = OURS["worker"]["environment"]
    rows = catalog(chosen["DEFAULT_MODEL"])
    assert not rows.default.needs_gpu
    assert chosen["ALLOWED_MODELS"].startswith("pocket-")
    assert all(set(service) <= KEYS for service in SERVICES.values())


def test_compose_sets_variables_that_exist_to_values_that_they_take() -> None:
    """A variable that nobody reads is a setting that silently does nothing."""
    known = {variable for variable, _, _ in settings.describe()}
    for service in OURS.values():
        environment = service["environment"]
        assert environment.keys() <= known
        values = {name.lower(): unset(value) for name, value in environment.items()}
        settings.Settings.model_validate({name: value for name, value in values.items() if value})


def test_ports_are_this_machines_alone_and_lead_to_the_one_that_is_listened_on() -> None:
    """The server starts without keys: what publishes it must not publish it to the world."""
    published = []
    for name, service in SERVICES.items():
        for port in service.get("ports", []):
            host, outside, inside = port.split(":")
            assert host == "127.0.0.1"
            published.append(outside)
            if name in OURS:
                assert inside == service["environment"]["API_PORT"]
    assert len(set(published)) == len(published) == 5


def test_every_volume_is_declared_and_every_file_exists() -> None:
    """Docker makes an empty folder of a path that is missing."""
    named = set()
    for service in SERVICES.values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), source
            else:
                named.add(source)
    assert named == set(COMPOSE["volumes"])
    assert all((DEPLOY / service["build"] / "Dockerfile").exists() for service in OURS.values())


def test_no_two_workers_share_what_they_keep() -> None:
    """A second process on the jobs of the first would end both."""
    kept = [
        volume
        for service in OURS.values()
        for volume in service["volumes"]
        if volume.endswith(":" + service["environment"]["DATA_DIR"])
    ]
    assert len(kept) == len(set(kept)) == len(OURS)


def test_weights_land_on_the_volume_where_the_image_looks() -> None:
    """Else each new container downloads 58 GB."""
    home = re.search(r"HF_HOME=(\S+)", (ROOT / "Dockerfile").read_text())
    assert home is not None
    assert f"models:{home[1]}" in SERVICES["gpu"]["volumes"]


def test_docker_waits_for_the_drain_and_the_gateway_for_the_worker() -> None:
    """SIGKILL after ten seconds would cut running jobs off."""
    for service in OURS.values():
        assert int(service["stop_grace_period"].removesuffix("s")) >= default("drain_seconds") + 10
    longest = default("request_timeout_seconds")
    assert float(SERVICES["gateway"]["environment"]["REQUEST_TIMEOUT"]) > longest


def test_the_gateway_stands_before_services_that_start_with_it() -> None:
    """And before each of them once."""
    gateway = SERVICES["gateway"]
    servers = unset(gateway["environment"]["TEXT2IMAGE_SERVER_URL"]).split(",")
    hosts = [re.fullmatch(r"http://([\w-]+):(\d+)", server) for server in servers]
    for host in hosts:
        assert host is not None
        worker = SERVICES[host[1]]
        assert worker.get("profiles", gateway["profiles"]) == gateway["profiles"]
        assert worker["environment"]["API_PORT"] == host[2]
    assert len(hosts) == len(set(servers)) == 2
    assert (ROOT / "gateway").is_dir()


def test_prometheus_scrapes_every_worker_and_finds_its_rules() -> None:
    """A worker that nobody scrapes fails unseen."""
    [scrape] = PROMETHEUS["scrape_configs"]
    [source] = scrape["dns_sd_configs"]
    assert set(source["names"]) == WORKERS
    assert {str(source["port"])} == {OURS[name]["environment"]["API_PORT"] for name in WORKERS}
    sample = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    assert scrape["metrics_path"] == sample["scrape_configs"][0]["metrics_path"]
    mounted = [volume.split(":")[1] for volume in SERVICES["prometheus"]["volumes"]]
    for rules in PROMETHEUS["rule_files"]:
        assert f"/etc/prometheus/{rules}" in mounted


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    """It starts empty otherwise, and says nothing."""
    [source] = yaml.safe_load((DEPLOY / "monitoring/datasource.yml").read_text())["datasources"]
    inside = SERVICES["prometheus"]["ports"][0].split(":")[2]
    assert source["url"] == f"http://prometheus:{inside}"
    [provider] = yaml.safe_load((DEPLOY / "monitoring/dashboards.yml").read_text())["providers"]
    assert f"./grafana:{provider['options']['path']}:ro" in SERVICES["grafana"]["volumes"]
    board = json.loads((DEPLOY / "grafana/batchmux.json").read_text())
    assert board["templating"]["list"][0]["query"] == source["type"]


def test_the_keys_that_compose_reads_stay_out_of_the_image() -> None:
    """An image is published, and Compose looks for ``.env`` beside its own file, within what is copied."""
    assert "**/.env" in (ROOT / ".dockerignore").read_text().splitlines()


def test_foreign_images_are_pinned() -> None:
    """Another day's ``latest`` is another product."""
    foreign = {service["image"] for service in SERVICES.values()} - {"batchmux"}
    assert all(re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+", image) for image in foreign)


def every(name: str, within: list[Directive]) -> list[Directive]:
    """Those of that name, at any depth."""
    return [found for one in within for found in ([one] if one.name == name else []) + every(name, one.block)]


def only(name: str, within: list[Directive]) -> str:
    [found] = every(name, within)
    return " ".join(found.values)


def test_nginx_passes_on_what_workers_take_and_waits_as_long_as_they() -> None:
    """Or callers would get its pages in place of our answers."""
    file = parse(NGINX)
    assert int(only("client_max_body_size", file).removesuffix("m")) > default("max_body_mb")
    waits = float(only("proxy_read_timeout", file).removesuffix("s"))
    assert waits > default("request_timeout_seconds")
    [upstream] = every("upstream", file)
    names = [one.name for one in upstream.block]
    assert {"least_conn", "zone", "keepalive"} <= set(names)
    assert only("proxy_pass", file) == f"http://{upstream.values[0]}"


def test_nginx_streams_keeps_connections_and_carries_the_id() -> None:
    """With buffering, progress arrives with the picture."""
    file = parse(NGINX)
    assert only("proxy_buffering", file) == "off"
    assert only("proxy_http_version", file) == "1.1"
    sent = {one.values[0]: one.values[1] for one in every("proxy_set_header", file)}
    assert sent["Connection"] == '""'
    assert sent["X-Request-Id"] == "$trace_id"
    assert sent["Host"] == "$http_host"


def test_nginx_never_sends_a_post_twice() -> None:
    """Two pictures would be made, and paid for."""
    assert "non_idempotent" not in only("proxy_next_upstream", parse(NGINX))


def test_nginx_stands_before_the_ports_of_the_script() -> None:
    """The two are used together."""
    first = re.search(r"FIRST_PORT=\$\{FIRST_PORT:-(\d+)\}", SCRIPT)
    assert first is not None
    [upstream] = every("upstream", parse(NGINX))
    servers = [one.values[0] for one in upstream.block if one.name == "server"]
    assert servers == [f"127.0.0.1:{int(first[1]) + number}" for number in range(len(servers))]


@pytest.mark.parametrize(
    "wrong",
    [NGINX.rstrip().removesuffix("}"), NGINX + "}", NGINX.replace("return 404;", "return 404")],
)
def test_a_broken_nginx_file_is_seen(tmp_path: Path, wrong: str) -> None:
    """By the reader above, and by nginx itself where there is one."""
    with pytest.raises(ValueError, match="not closed"):
        parse(wrong)
    assert nginx_takes(NGINX, tmp_path)
    assert not shutil.which("nginx") or not nginx_takes(wrong, tmp_path)


def nginx_takes(text: str, folder: Path) -> bool:
    """What ``nginx -t`` says; where there is no nginx, nobody objects."""
    (folder / "nginx.conf").write_text(text.replace("/dev/stdout", f"{folder}/access.log"))
    main = f"pid {folder}/pid; error_log {folder}/error.log;"
    if (nginx := shutil.which("nginx")) is None:
        return True
    command = [nginx, "-t", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", main]
    return subprocess.run(command, capture_output=True, timeout=30).returncode == 0


@pytest.mark.parametrize("page", ["deploy/README.md", "docs/runpod.md"])
def test_the_guides_point_at_what_exists_and_name_settings_that_exist(page: str) -> None:
    """A guide is believed."""
    text = (ROOT / page).read_text()
    assert dangling(ROOT / page, text) == []
    assert fenced(text)
    known = {variable for variable, _, _ in settings.describe()}
    foreign = {"HF_HOME", "HUGGINGFACE_HUB_CACHE", "CUDA_VISIBLE_DEVICES", "PORT", "PORT_HEALTH", "SERVERS"}
    foreign |= {
        "GRAFANA_PASSWORD",
        "FIRST_PORT",
        "DATA_ROOT",
        "ENDPOINT_ID",
        "RUNPOD_MIN_DISK_PERCENT",
    }
    named = set(re.findall(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b", text))
    assert named - known - foreign == set()


def test_every_file_of_the_folder_is_explained() -> None:
    """What nobody explains nobody uses."""
    page = (DEPLOY / "README.md").read_text()
    files = {path.name for path in DEPLOY.iterdir() if path.name not in ("README.md", "__pycache__")}
    assert not {name for name in files if f"({name})" not in page and f"`{name}`" not in page}
