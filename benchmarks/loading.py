"""Loading: time and peak memory of each model that runs here in each precision, and bandwidth against dd.

``python -m benchmarks.loading [--gb SIZE] [--rounds N] [--only models|bandwidth]`` prints two tables and
exits 1 when the target is missed. Each load has a process of its own, libraries imported before the clock
starts. For the second table a checkpoint of real shapes in several shards is written to a temporary folder
(TMPDIR says where) and removed afterwards; every run begins with none of it in the page cache. Loading is
over when every byte was read and the model is built, its weights mapped from the page cache, where a GPU
would copy them from; a line more shows the same with each page of the weights touched once.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from benchmarks.memory import resident
from core.errors import ServingError
from pipelines.options import ModelOptions, Precision
from pipelines.registry import SPECS, catalog

GB, ROUNDS, TARGET = 4.0, 5, 0.8
PRECISIONS = {
    "bf16": Precision(),
    "fp16": Precision(mode="fp16"),
    "fp32": Precision(mode="fp32"),
    "8bit bitsandbytes": Precision(mode="8bit", eight_bit="bitsandbytes"),
    "8bit torchao-int8": Precision(mode="8bit", eight_bit="torchao-int8"),
    "8bit torchao-fp8": Precision(mode="8bit", eight_bit="torchao-fp8"),
    "8bit fp8-layerwise": Precision(mode="8bit", eight_bit="fp8-layerwise"),
    "4bit": Precision(mode="4bit"),
}
BLOCK = "1M"  # of dd; 16M was slower here
LAYER_GB = 1.36  # one block of the full-size transformer in fp32, which is what a CPU computes in


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loading")
    parser.add_argument("--gb", type=float, default=GB)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", choices=("models", "bandwidth"))
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one_load(*given.one)))
        return 0
    if given.only != "bandwidth":
        show_models()
    return 0 if given.only == "models" else show_bandwidth(given.gb, given.rounds)


def show_models() -> None:
    """One row a model and precision; a refusal takes the figures' place."""
    print(f"{'model':14}{'PRECISION_MODE':20}{'load':>8}{'weights':>11}{'held as':>9}{'peak growth':>19}")
    for spec in SPECS:
        for name in PRECISIONS if spec.source.startswith("builtin:") else ():
            command = [sys.executable, "-m", "benchmarks.loading", "--one", spec.name, name]
            done = subprocess.run(command, capture_output=True, text=True)
            figures = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}
            print(f"{spec.name:14}{name:20}{cells(figures, done.stderr)}", flush=True)


def cells(figures: dict[str, Any], log: str) -> str:
    if not figures:
        return f"  failed: {(log.strip().splitlines() or ['?'])[-1][:120]}"
    if "refused" in figures:
        return f"  refused: {figures['refused']}"
    return (
        f"{figures['seconds']:6.2f} s{figures['weights'] / 1e6:8.0f} MB{figures['precision']:>9}"
        f"{figures['peak'] / 1e6:16.0f} MB"
    )


def one_load(model: str, precision: str) -> dict[str, Any]:
    """Figures of a load in this process."""
    from pipelines.manager import ModelManager

    with tempfile.TemporaryDirectory() as folder:
        rows = catalog(model)
        plain = ModelOptions(cache_dir=Path(folder))
        ModelManager(rows, plain).acquire(model)  # builds the checkpoint, imports every library
        chosen = ModelOptions(cache_dir=Path(folder), precision=PRECISIONS[precision])
        models = ModelManager(rows, chosen)
        Path("/proc/self/clear_refs").write_text("5")  # the highest figure begins again
        before, started = resident(), time.perf_counter()
        try:
            pipeline = models.acquire(model)
        except ServingError as error:
            return {"refused": error.message}
        seconds = time.perf_counter() - started
        return {
            "seconds": seconds,
            "weights": pipeline.weights.nbytes,
            "precision": pipeline.weights.precision,
            "peak": resident("VmHWM") - before,
        }


class Load(NamedTuple):
    """Seconds until the model is built, and until each page of it was touched as well."""

    built: float
    touched: float


class Round(NamedTuple):
    """Of dd, of our load and of the library's alone."""

    dd: Load
    ours: Load
    plain: Load


def show_bandwidth(gb: float, rounds: int) -> int:
    """1 when loading reaches less than the target's part of what dd reads."""
    layers = max(1, round(gb / LAYER_GB))
    expected = layers * LAYER_GB * 1e9
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < expected * 1.2:
        print(
            f"\n{expected / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free; set TMPDIR or --gb less"
        )
        return 1
    with tempfile.TemporaryDirectory(prefix="loading-") as folder:
        files = write_checkpoint(Path(folder), layers)
        nbytes = sum(path.stat().st_size for path in files)
        print(
            f"\n{nbytes / 1e9:.2f} GB in {len(files)} shards, cold, {rounds} interleaved rounds", flush=True
        )
        runs = [dd(files), child(files, "ours"), child(files, "plain")]
        measured = [one_round(runs, first=number % 3) for number in range(rounds)]
    print(f"{'':44}{'median':>14}{'best':>10}{'of dd':>8}  (median of the rounds' ratios)")
    for name, seconds in (
        (f"dd bs={BLOCK}", [r.dd.built for r in measured]),
        ("load: read ahead, then from_pretrained", [r.ours.built for r in measured]),
        ("the same, every page touched", [r.ours.touched for r in measured]),
        ("from_pretrained alone, every page touched", [r.plain.touched for r in measured]),
    ):
        speeds = [nbytes / s / 1e9 for s in (statistics.median(seconds), min(seconds))]
        print(f"{name:44}{speeds[0]:9.2f} GB/s{speeds[1]:5.2f} GB/s{ratio_to_dd(measured, seconds):8.2f}")
    ratio = ratio_to_dd(measured, [r.ours.built for r in measured])
    print(f"load / dd {ratio:.2f}, target {TARGET}{'' if ratio >= TARGET else ' MISSED'}")
    return 0 if ratio >= TARGET else 1


def one_round(runs: list[Callable[[], Load]], first: int) -> Round:
    """The order turns: a host below may remember what was read a moment ago."""
    order = [(first + i) % len(runs) for i in range(len(runs))]
    measured = {which: runs[which]() for which in order}
    return Round(measured[0], measured[1], measured[2])


def ratio_to_dd(measured: list[Round], seconds: list[float]) -> float:
    """Median over the rounds of the bandwidth as a part of dd's in the same round."""
    return statistics.median(r.dd.built / own for r, own in zip(measured, seconds, strict=True))


def write_checkpoint(folder: Path, layers: int) -> list[Path]:
    """A Qwen-Image transformer of full width and few layers, one shard a layer; its files."""
    import torch
    from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
    from safetensors.torch import save_file

    part = folder / "transformer"
    with torch.device("meta"):
        model = QwenImageTransformer2DModel(num_layers=layers)
    model.save_config(part)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "QwenImageEditPlusPipeline"}))
    noise = torch.randn(2**24)
    shards: dict[str, dict[str, Any]] = {}
    for name, weight in model.state_dict().items():
        layer = int(name.split(".")[1]) if name.startswith("transformer_blocks.") else 0
        file = f"diffusion_pytorch_model-{layer + 1:05}-of-{layers:05}.safetensors"
        shards.setdefault(file, {})[name] = weight
    for file, weights in tqdm(shards.items(), desc="writing", unit="shard"):
        save_file({name: filled(noise, weight.shape) for name, weight in weights.items()}, part / file)
    places = {name: file for file, weights in shards.items() for name in weights}
    index = part / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    os.sync()
    return sorted(part.glob("*.safetensors"))


def filled(noise: Any, shape: Any) -> Any:
    count = shape.numel()
    return noise.repeat(-(-count // len(noise)))[:count].reshape(shape).contiguous()


def forget(files: list[Path]) -> None:
    """Take them out of the page cache. Done just before a clock starts, or free memory goes back to a host
    below, and the first to get it again pays for that."""
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def dd(files: list[Path]) -> Callable[[], Load]:
    def run() -> Load:
        forget(files)
        started = time.perf_counter()
        for path in files:
            subprocess.run(["dd", f"if={path}", "of=/dev/null", f"bs={BLOCK}", "status=none"], check=True)
        seconds = time.perf_counter() - started
        return Load(seconds, seconds)

    return run


# Imports first and says so; loads when told to; says how long it took.
_CHILD = """
import sys, time
from pathlib import Path
import torch
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel as Kind
from pipelines.loading import Loader
from pipelines.options import ModelOptions, Silent
from pipelines.registry import catalog

folder, ours = Path(sys.argv[1]), sys.argv[2] == "ours"
loader = Loader(
    catalog("pocket-edit").default, ModelOptions(model_dir=folder), Silent(),
    pipeline_class="QwenImageEditPlusPipeline", stages=2,
)
print("ready", flush=True)
sys.stdin.readline()
started = time.perf_counter()
if ours:
    model = loader.model(Kind, "transformer", role="denoiser")
else:
    model = Kind.from_pretrained(
        folder, subfolder="transformer", dtype=torch.float32, use_safetensors=True, local_files_only=True
    )
built = time.perf_counter() - started
sum(float(weight.view(-1)[::1024].sum()) for weight in model.parameters())
print(built, time.perf_counter() - started, flush=True)
"""


def child(files: list[Path], which: str) -> Callable[[], Load]:
    """A load in a process of its own, ``ours`` or the library's ``plain`` one."""

    def run() -> Load:
        with subprocess.Popen(
            [sys.executable, "-c", _CHILD, str(files[0].parent.parent), which],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            lines: Iterator[str] = iter(process.stdout)
            assert next(lines).strip() == "ready"
            forget(files)
            process.stdin.write("go\n")
            process.stdin.flush()
            built, touched = next(lines).split()
            return Load(float(built), float(touched))

    return run


if __name__ == "__main__":
    sys.exit(main())
