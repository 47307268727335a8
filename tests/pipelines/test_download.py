"""``handler.py download``: the program as it is run, against a hub on the loopback."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import CapacityError
from core.spec import PipelineSpec
from pipelines.download import Source, fetch, files_of
from pipelines.options import ModelOptions
from pipelines.registry import catalog
from tests.pipelines.hub_server import HubServer, Repository
from tests.pipelines.rows import BUILT_IN

ROOT = Path(__file__).resolve().parents[2]
MODEL, SOURCE = "qwen-image-edit-2509", "Qwen/Qwen-Image-Edit-2509"
FIRST, SECOND = (f"transformer/model-{n}-of-2.safetensors" for n in (1, 2))
MIB = 2**20  # the client writes ten of them at a time


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """What a checkpoint's repository holds, and what of one must stay where it is."""
    draw = random.Random(0)
    return {
        "model_index.json": b"{}",
        "transformer/config.json": json.dumps({"layers": 1}).encode(),
        FIRST: draw.randbytes(3 * MIB),
        SECOND: draw.randbytes(24 * MIB),
        "transformer/diffusion_pytorch_model.fp16.safetensors": draw.randbytes(100),
        "transformer/diffusion_pytorch_model.bin": b"a pickle could run code",
        "transformer/modeling.py": b"raise SystemExit('code of a checkpoint was run')",
    }


LIGHTNING = "lightx2v/Qwen-Image-Lightning"


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[HubServer]:
    with HubServer({SOURCE: Repository(dict(files))}) as server:
        yield server


def environment(hub: HubServer, home: Path, **given: str) -> dict[str, str]:
    own = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "CACHE_DIR": str(home / "built")}
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return clean | own | {"OMP_NUM_THREADS": "1", "USE_LIGHTNING_LORA": "0"} | given


def download(hub: HubServer, home: Path, *arguments: str, **given: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "handler.py", "download", *(arguments or (MODEL,))],
        cwd=ROOT,
        env=environment(hub, home, **given),
        capture_output=True,
        text=True,
        timeout=60,
    )


def snapshot(home: Path, source: str = SOURCE) -> Path:
    (folder,) = (home / "hub" / f"models--{source.replace('/', '--')}" / "snapshots").iterdir()
    return folder


def test_a_checkpoint_is_fetched_whole_and_can_be_checked_with_common_tools(
    hub: HubServer, tmp_path: Path, files: dict[str, bytes]
) -> None:
    """Weights and their descriptions alone: no pickle, no code, no second copy in another format."""
    done = download(hub, tmp_path, HF_TOKEN="secret")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verified" in done.stdout
    folder = snapshot(tmp_path)
    wanted = {"model_index.json", "transformer/config.json", FIRST, SECOND}
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == wanted | {"SHA256SUMS"}
    assert all((folder / name).read_bytes() == files[name] for name in wanted)
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
    tokens = {asked.path.startswith("/storage"): asked.token for asked in hub.asked}
    assert tokens == {False: "Bearer secret", True: None}, "the token is the hub's, not its storage's"


def test_the_lightning_lora_of_a_row_comes_with_it(hub: HubServer, tmp_path: Path) -> None:
    """A baked image without it would fetch it at every start, or not start at all."""
    file = "Qwen-Image-Edit-2509/Qwen-Image-Edit-2509-Lightning-4steps-V1.0-bf16.safetensors"
    hub.repositories[LIGHTNING] = Repository({file: b"four", file.replace("4steps", "8steps"): b"eight"})
    done = download(hub, tmp_path, USE_LIGHTNING_LORA="1", LIGHTNING_STEPS="4")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = snapshot(tmp_path, LIGHTNING)
    assert (folder / file).read_bytes() == b"four"
    assert not (folder / file.replace("4steps", "8steps")).exists()


def test_users_loras_come_with_the_models_that_take_them(hub: HubServer, tmp_path: Path) -> None:
    """A baked image must answer requests for them. What is in LORA_DIR is here already."""
    files = {name: name.encode() for name in ("deep/a[1].safetensors", "b.fp16.safetensors", "c.safetensors")}
    hub.repositories["Org/Loras"] = Repository(files, {"main": "a" * 40, "v1": "b" * 40})
    baked = tmp_path / "loras"
    baked.mkdir()
    (baked / "c.safetensors").touch()
    given = {
        "USER_LORAS": "a=Org/Loras@v1/deep/a[1].safetensors,b=Org/Loras/b.fp16.safetensors,"
        "c=Org/Loras/c.safetensors,d=c.safetensors",
        "LORA_DIR": str(baked),
    }
    done = download(hub, tmp_path, **given)
    assert done.returncode == 0, done.stdout + done.stderr
    commits = tmp_path / "hub/models--Org--Loras/snapshots"
    fetched = {str(path.relative_to(commits)) for path in commits.rglob("*.safetensors")}
    assert fetched == {f"{'b' * 40}/deep/a[1].safetensors", f"{'a' * 40}/b.fp16.safetensors"}
    hub.asked.clear()
    sound = download(hub, tmp_path, "--verify", MODEL, **given)
    assert (sound.returncode, hub.asked) == (0, []), sound.stdout
    assert sound.stdout.count("all as they were fetched") == 3


def test_loras_come_with_a_built_in_model_and_with_none_that_refuses_them() -> None:
    """What a load would take, and nothing else."""
    options = ModelOptions(adapters={"a": "Org/Loras/a.safetensors", "b": "Org/Loras/a.safetensors"})
    source = Source("Org/Loras", None, ("a.safetensors",))
    assert files_of(catalog("pocket-edit", adapters=options.adapters).default, options) == [source]
    refusing = catalog("pocket-edit", adapters=options.adapters, precision={"mode": "4bit"}).default
    assert files_of(refusing, options) == []


def test_a_lora_that_cannot_be_had_is_named(hub: HubServer, tmp_path: Path) -> None:
    """And the model is there all the same."""
    done = download(hub, tmp_path, USER_LORAS="a=Org/Nothing/a.safetensors")
    assert (done.returncode, "the hub knows no Org/Nothing" in done.stdout) == (1, True), done.stdout
    assert "verified" in done.stdout


def test_a_checkpoint_of_a_folder_is_not_fetched(hub: HubServer, tmp_path: Path, checkpoint: Path) -> None:
    """A load takes it from there; what it takes from the hub beside it comes all the same."""
    file = "Qwen-Image-Edit-2509/Qwen-Image-Edit-2509-Lightning-4steps-V1.0-bf16.safetensors"
    hub.repositories[LIGHTNING] = Repository({file: b"four"})
    folder = tmp_path / "own"
    shutil.copytree(checkpoint, folder)
    given = {"DEFAULT_MODEL": MODEL, "MODEL_DIR": str(folder), "LIGHTNING_STEPS": "4"}
    done = download(hub, tmp_path, USE_LIGHTNING_LORA="1", **given)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "MODEL_DIR is used as it is" in done.stdout
    assert (snapshot(tmp_path, LIGHTNING) / file).read_bytes() == b"four"
    assert not [asked for asked in hub.asked if SOURCE in asked.path]
    unsummed = download(hub, tmp_path, "--verify", MODEL, **given)
    assert "copy it from a checkpoint that this command has fetched" in unsummed.stdout
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    for broken, words in (
        ({}, "vae/diffusion_pytorch_model.safetensors has"),
        ({"MODEL_REVISION": "v1"}, "unset it"),
    ):
        refused = download(hub, tmp_path, **given, **broken)
        assert (refused.returncode, words in refused.stdout) == (1, True), refused.stdout
    (folder / "model_index.json").unlink()
    assert "no model_index.json in the checkpoint's folder" in download(hub, tmp_path, **given).stdout


@pytest.mark.parametrize("row", BUILT_IN, ids=lambda row: row.name)
def test_what_is_in_this_repository_is_built(row: PipelineSpec, options: ModelOptions) -> None:
    """A checkpoint of any family: each has an index of its own."""
    (line,) = fetch(row, options)
    assert line.startswith(f"{row.name}: built at {options.cache_dir}")


def test_a_folder_of_another_family_is_refused(options: ModelOptions, checkpoint: Path) -> None:
    """Its weights would be found wanting only after they were read."""
    own = replace(options, model_dir=checkpoint)
    with pytest.raises(
        CapacityError, match=r"no config\.json in the checkpoint's folder; .* one of pocket-sam3"
    ):
        list(fetch(catalog("pocket-sam3").default, own))


def test_an_interrupted_download_goes_on_where_it_stopped(
    hub: HubServer, tmp_path: Path, files: dict[str, bytes]
) -> None:
    """A shard has gigabytes, and the machine may be taken away at any moment."""
    hub.stall_at[SECOND] = 21 * MIB
    process = subprocess.Popen(
        [sys.executable, "handler.py", "download", MODEL],
        cwd=ROOT,
        env=environment(hub, tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert hub.stalled.wait(30)
    (part,) = _parts_of_at_least(tmp_path, 20 * MIB)
    process.kill()
    process.wait(10)
    hub.stall_at.clear()
    hub.asked.clear()

    done = download(hub, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not part.exists()
    assert hub.downloads(FIRST) == [], "the first shard was there"
    ranges = {asked.range for asked in hub.downloads(SECOND)}
    assert ranges == {f"bytes={20 * MIB}-"}
    assert (snapshot(tmp_path) / SECOND).read_bytes() == files[SECOND]


def _parts_of_at_least(home: Path, nbytes: int) -> list[Path]:
    """What the killed process will leave behind; it is still writing, so wait for the file to be as long."""
    watch = f"until find {home} -name '*.part' -size +{nbytes - 1}c | grep -q .; do sleep 0.05; done"
    subprocess.run(["bash", "-c", watch], timeout=20, check=True)
    return list(home.rglob("*.part"))


@pytest.mark.parametrize("name", [SECOND, "transformer/config.json"])
def test_bytes_that_arrive_wrong_are_caught_and_fetched_again(
    hub: HubServer, tmp_path: Path, files: dict[str, bytes], name: str
) -> None:
    """A flipped bit in a weight paints noise, weeks later and far away."""
    hub.corrupt.add(name)
    done = download(hub, tmp_path)
    assert done.returncode == 1
    assert f"{name} " in done.stdout
    assert "damaged" in done.stdout
    hub.corrupt.clear()
    assert download(hub, tmp_path).returncode == 0
    assert (snapshot(tmp_path) / name).read_bytes() == files[name]


def test_what_rots_on_the_disk_is_found_and_mended(
    hub: HubServer, tmp_path: Path, files: dict[str, bytes]
) -> None:
    """``--verify`` asks nobody; the next download fetches that one file."""
    assert download(hub, tmp_path).returncode == 0
    hub.asked.clear()
    sound = download(hub, tmp_path, "--verify", MODEL)
    assert (sound.returncode, hub.asked) == (0, []), sound.stdout
    blob = (snapshot(tmp_path) / FIRST).resolve()
    data = bytearray(blob.read_bytes())
    data[1000] ^= 1
    blob.write_bytes(data)
    rotten = download(hub, tmp_path, "--verify", MODEL)
    assert rotten.returncode == 1
    assert f"{FIRST} is damaged" in rotten.stdout
    assert SECOND not in rotten.stdout
    assert download(hub, tmp_path).returncode == 0
    assert hub.downloads(SECOND) == []
    assert (snapshot(tmp_path) / FIRST).read_bytes() == files[FIRST]


def test_a_commit_is_pinned_and_named(hub: HubServer, tmp_path: Path) -> None:
    """What was tested is what runs: a branch moves, a commit does not."""
    hub.repositories[SOURCE].revisions["v1"] = "b" * 40
    done = download(hub, tmp_path, DEFAULT_MODEL=MODEL, MODEL_REVISION="v1")
    assert done.returncode == 0, done.stdout
    assert f"at commit {'b' * 40}" in done.stdout
    assert snapshot(tmp_path).name == "b" * 40


@pytest.mark.parametrize(
    ("given", "model", "status", "words"),
    [
        ({}, "qwen-image-edit", 1, "the hub knows no Qwen/Qwen-Image-Edit"),
        ({}, "firered-image-edit-1.0", 1, "accept its licence on its page at the hub, then set HF_TOKEN"),
        ({"DEFAULT_MODEL": MODEL, "MODEL_REVISION": "v9"}, MODEL, 1, "has no revision v9"),
        ({"LOCAL_ONLY": "1"}, MODEL, 1, "LOCAL_ONLY=1 forbids fetching"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, MODEL, 1, "check the network"),
        ({}, "qwen-image-edit-2508", 2, "did you mean 'qwen-image-edit-2509'?"),
    ],
)
def test_a_refusal_names_the_remedy(
    hub: HubServer, tmp_path: Path, given: dict[str, str], model: str, status: int, words: str
) -> None:
    """One sentence, no traceback: it is read in the log of an image build."""
    hub.repositories["FireRedTeam/FireRed-Image-Edit-1.0"] = Repository(
        {"model_index.json": b"{}"}, gated=True
    )
    done = download(hub, tmp_path, model, **given)
    assert (done.returncode, words in done.stdout) == (status, True), done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_verifying_what_was_never_fetched_says_so(hub: HubServer, tmp_path: Path) -> None:
    """An empty volume must not pass for a sound one."""
    done = download(hub, tmp_path, "--verify", MODEL)
    assert done.returncode == 1
    assert "is not, or not whole, in the local cache" in done.stdout
