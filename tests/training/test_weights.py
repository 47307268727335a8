"""The checkpoint stays small enough for a repository."""

from pathlib import Path

from safetensors import safe_open

WEIGHTS = Path(__file__).parents[2] / "pipelines/pocket/weights"
LIMIT = 16_000_000  # bytes of all files together


def test_all_weights_fit_the_repository() -> None:
    """The LoRA included: nobody should need a download to try the worker."""
    sizes = {path.name: path.stat().st_size for path in WEIGHTS.iterdir()}
    assert set(sizes) == {
        "latents.json",
        "lightning-4steps.safetensors",
        "text_encoder.safetensors",
        "transformer.safetensors",
        "vae.safetensors",
    }
    assert sum(sizes.values()) <= LIMIT, sizes


def test_every_weight_is_bf16() -> None:
    """fp32 by mistake doubles a file."""
    for path in WEIGHTS.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118
