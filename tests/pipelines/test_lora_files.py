"""A LoRA file is found, and believed only as far as its header was checked."""

import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.lora_files import MAX_HEADER_BYTES, LoraNotFound, find
from pipelines.lora_keys import BadLora, family_of
from pipelines.options import Lightning, ModelOptions
from tests.pipelines import loras

OFFLINE = ModelOptions(local_only=True)
LINEAR = {"x.to_q": (torch.randn(4, 8), torch.randn(16, 4))}


@pytest.mark.parametrize("layout", loras.LAYOUTS)
def test_every_layout_is_read_as_the_same_layers(layout: str, tmp_path: Path) -> None:
    """lora_down without alpha and bare lora_A load nothing, silently, with diffusers' own reader."""
    pairs = LINEAR | {"x.to_out.0": (torch.randn(2, 16), torch.randn(8, 2))}
    file = find(str(loras.written(tmp_path / "a.safetensors", pairs, layout)), OFFLINE)
    flat = layout == "kohya"
    names = sorted(name.replace(".", "_") if flat else name for name in pairs)
    assert [layer.module for layer in file.layers] == names
    assert {layer.rank for layer in file.layers} == {2, 4}
    assert all(layer.flattened == flat and layer.part == "denoiser" for layer in file.layers)


@pytest.mark.parametrize(
    ("prefix", "part"),
    [
        ("text_encoder.", "text_encoder"),
        ("text_encoder_2.", "text_encoder_2"),
        ("lora_te1_", "text_encoder"),
        ("lora_te2_", "text_encoder_2"),
        ("unet.", "denoiser"),
    ],
)
def test_each_part_is_told_by_its_prefix(prefix: str, part: str, tmp_path: Path) -> None:
    """A text encoder's layers must not be taken for the denoiser's."""
    down, up = LINEAR["x.to_q"]
    path = loras.write(
        tmp_path / "a.safetensors", {f"{prefix}x.lora_down.weight": down, f"{prefix}x.lora_up.weight": up}
    )
    (layer,) = find(str(path), OFFLINE).layers
    assert (layer.part, layer.module) == (part, "x")


def test_diffusers_metadata_say_the_scale(tmp_path: Path) -> None:
    """It writes alpha there and not into the tensors; without them a LoRA is applied too strongly."""
    settings = '{"transformer.r": 4, "transformer.lora_alpha": 8, "transformer.alpha_pattern": {"x.to_k": 2}}'
    pairs = LINEAR | {"x.to_k": LINEAR["x.to_q"]}
    weights = {key: value.clone() for key, value in loras.LAYOUTS["diffusers"][0](pairs).items()}
    path = loras.write(tmp_path / "a.safetensors", weights, {"lora_adapter_metadata": settings})
    scales = {layer.module: layer.scale for layer in find(str(path), OFFLINE).layers}
    assert scales == {"x.to_q": 2.0, "x.to_k": 0.5}


def test_a_file_in_the_folder_comes_before_the_hub(tmp_path: Path) -> None:
    """LORA_DIR: images are baked with files that nobody should fetch again."""
    here = loras.written(tmp_path / "a.safetensors", LINEAR)
    options = replace(OFFLINE, lightning=Lightning(folder=tmp_path))
    assert find("owner/name/folder/a.safetensors", options).path == here
    assert find("a.safetensors", options).path == here


@pytest.mark.parametrize("source", ["owner/name/folder/a.safetensors", "owner/name@v1/folder/a.safetensors"])
def test_a_file_of_the_hub_is_found_in_its_cache(source: str, tmp_path: Path) -> None:
    """By repository, path and revision, with nobody asked. The client reads its folder's name at import."""
    repository = tmp_path / "models--owner--name"
    (repository / "snapshots/abc/folder").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / ("v1" if "@" in source else "main")).write_text("abc")
    loras.written(repository / "snapshots/abc/folder/a.safetensors", LINEAR)
    script = (
        "from pipelines.lora_files import find; from pipelines.options import ModelOptions;"
        f"print(len(find({source!r}, ModelOptions(local_only=True)).layers))"
    )
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.stdout.strip() == "1", done.stderr


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("batchmux-tests/none/a.safetensors", "LOCAL_ONLY"),
        ("batchmux-tests/none@0123abc/a.safetensors", "LOCAL_ONLY"),
        ("a.safetensors", "LORA_DIR"),
        ("no such owner!/name/a.safetensors", "no such file"),
        ("/nowhere/a.safetensors", "no such file"),
        ("builtin:nothing.safetensors", "no such file"),
    ],
)
def test_a_file_that_is_nowhere_is_explained(source: str, sentence: str) -> None:
    """By what the operator can change."""
    with pytest.raises(LoraNotFound, match=sentence):
        find(source, OFFLINE)


def tensor(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


GOOD = {"x.lora_A.weight": tensor([1, 2], 0, 8), "x.lora_B.weight": tensor([2, 1], 8, 16)}
FORGED: dict[str, tuple[Any, bytes, str]] = {
    "no tensors": ({}, b"", "no layer"),
    "not JSON": (b"{" * 40, b"", "not JSON"),
    "nested deeply": (b"[" * 100_000, b"", "not JSON"),
    "a list": ([1, 2], b"", "no table"),
    "data cut short": (GOOD, b"0" * 15, "not a whole"),
    "data beyond the tensors": (GOOD, b"0" * 17, "not a whole"),
    "a tensor named twice": (b'{"a":{},"a":{}}', b"", "named once"),
    "no description": ({"x.alpha": 1}, b"", "not described"),
    "offsets that are text": ({"x.alpha": tensor([], 0, 4) | {"data_offsets": "ab"}}, b"0" * 4, "bytes"),
    "offsets of 1e400": (b'{"x.alpha":{"dtype":"F32","shape":[],"data_offsets":[0,1e400]}}', b"", "bytes"),
    "a negative size": ({"x.alpha": tensor([-1], 0, 4)}, b"0" * 4, "does not match"),
    "a vast size": ({"x.alpha": tensor([2**62, 2**62], 0, 4)}, b"0" * 4, "does not match"),
    "8-bit floats": ({"x.alpha": tensor([], 0, 1, "F8_E4M3")}, b"0", "16, 32 or 64 bits"),
    "overlapping tensors": (GOOD | {"x.lora_B.weight": tensor([2, 1], 4, 12)}, b"0" * 12, "overlap"),
    "rank 0": (
        {"x.lora_A.weight": tensor([0, 2], 0, 0), "x.lora_B.weight": tensor([2, 0], 0, 0)},
        b"",
        "rank of 0",
    ),
    "a vast rank": (
        {"x.lora_A.weight": tensor([4096, 1], 0, 16384), "x.lora_B.weight": tensor([0, 4096], 16384, 16384)},
        b"0" * 16384,
        "rank of 4096",
    ),
    "one factor alone": ({"x.lora_A.weight": GOOD["x.lora_A.weight"]}, b"0" * 8, "one of its two"),
    "factors of two ranks": (GOOD | {"x.lora_B.weight": tensor([1, 2], 8, 16)}, b"0" * 16, "do not fit"),
    "an alpha for each output": (GOOD | {"x.alpha": tensor([2], 16, 24)}, b"0" * 24, "no single number"),
    "a layer twice": (
        GOOD
        | {
            "transformer.x.lora_A.weight": tensor([1, 2], 16, 24),
            "transformer.x.lora_B.weight": tensor([2, 1], 24, 32),
        },
        b"0" * 32,
        "twice",
    ),
    "LoKr": ({"x.lokr_w1": tensor([1, 2], 0, 8)}, b"0" * 8, "LoKr"),
    "DoRA": (GOOD | {"x.dora_scale": tensor([2], 16, 24)}, b"0" * 24, "DoRA"),
    "biases": (GOOD | {"x.lora_B.bias": tensor([2], 16, 24)}, b"0" * 24, "biases"),
    "a whole checkpoint": ({"x.weight": tensor([1, 2], 0, 8)}, b"0" * 8, "unknown layout"),
    "metadata of numbers": (GOOD | {"__metadata__": {"lora_adapter_metadata": 7}}, b"0" * 16, "metadata"),
}


def test_the_forgeries_begin_with_a_good_file(tmp_path: Path) -> None:
    """Otherwise each of them might be refused for another reason than its own."""
    assert find(str(loras.forged(tmp_path / "a.safetensors", GOOD, b"0" * 16)), OFFLINE).layers


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_header_is_refused(case: str, tmp_path: Path) -> None:
    """Before a tensor of it is read; the sentence holds no path and none of the file's text."""
    header, data, sentence = FORGED[case]
    path = loras.forged(tmp_path / "a.safetensors", header, data)
    with pytest.raises(BadLora, match=sentence) as caught:
        find(str(path), OFFLINE)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"abc", struct.pack("<Q", 2**63) + b"{}"], ids=len)
def test_a_truncated_file_is_refused(content: bytes, tmp_path: Path) -> None:
    """A download that broke off."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(BadLora, match="not a whole"):
        find(str(path), OFFLINE)


def test_a_header_of_200_mb_is_not_read(tmp_path: Path) -> None:
    """Sparse on the disk; its length alone refuses it."""
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 200 * 10**6))
        file.truncate(200 * 10**6 + 8)
    with pytest.raises(BadLora, match=f"limit of {MAX_HEADER_BYTES}"):
        find(str(path), OFFLINE)


def test_a_pickle_is_never_read(tmp_path: Path) -> None:
    """Neither under its own name nor under another."""
    torch.save({"x": torch.zeros(1)}, tmp_path / "a.pt")
    renamed = tmp_path / "a.safetensors"
    renamed.write_bytes((tmp_path / "a.pt").read_bytes())
    for path in (tmp_path / "a.pt", renamed):
        with pytest.raises(BadLora):
            find(str(path), OFFLINE)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("transformer_blocks.0.attn.to_q", "Qwen-Image"),
        ("down_blocks.1.attentions.0.proj_in", "Stable Diffusion"),
        ("single_transformer_blocks.0.attn.to_q", "Flux"),
        ("blocks.0.self_attn.q", "Wan"),
        ("x.to_q", "other"),
    ],
)
def test_the_family_is_told_by_names(name: str, family: str, tmp_path: Path) -> None:
    """A person who mixed up two files wants to hear which models this one is for."""
    path = loras.written(tmp_path / "a.safetensors", {name: LINEAR["x.to_q"]})
    assert family_of(find(str(path), OFFLINE).layers) == family


def test_a_lora_of_texts_alone_is_stable_diffusions(tmp_path: Path) -> None:
    """Its layers have names like those of Wan's denoiser."""
    key = "text_encoder.encoder.layers.0.self_attn.q_proj"
    factors = zip(("lora_A", "lora_B"), LINEAR["x.to_q"], strict=True)
    path = loras.write(tmp_path / "a.safetensors", {f"{key}.{side}.weight": f for side, f in factors})
    assert family_of(find(str(path), OFFLINE).layers) == "Stable Diffusion"
