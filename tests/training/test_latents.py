"""Training packs latents as the worker does, for squares and for long pictures."""

import pytest
import torch
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel

from pipelines import qwen_vae
from pipelines.pocket import architecture
from training.latents import pack, unpack
from training.transformer import velocity


@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (6, 10), (10, 6)])
def test_latents_are_packed_in_the_worker_s_order(rows: int, columns: int) -> None:
    """And unpacked again: a model trained on another order would draw puzzles."""
    latents = torch.randn(2, 16, rows, columns)
    packed = pack(latents)
    assert torch.equal(packed, qwen_vae.pack(latents.unsqueeze(2)))
    assert torch.equal(unpack(packed, rows, columns), latents)


def test_the_model_is_told_the_shape() -> None:
    """24 tokens may be a wide picture or a tall one, and the answer depends on it."""
    torch.manual_seed(0)
    model = QwenImageTransformer2DModel(**(architecture.TRANSFORMER | {"num_layers": 1}))
    noisy, reference = torch.randn(2, 1, 24, 64)
    texts = (torch.randn(1, 3, 64), torch.ones(1, 3, dtype=torch.bool))
    with torch.no_grad():
        wide, again, tall = (
            velocity(model, noisy, torch.tensor([0.5]), (reference,), texts, grid)
            for grid in ((4, 6), (4, 6), (6, 4))
        )
    assert torch.equal(wide, again)
    assert (wide - tall).abs().max() > 1e-3
