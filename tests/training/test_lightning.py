"""The Lightning LoRA's file is one that the family's own loader reads whole."""

import torch
from diffusers.loaders.lora_pipeline import QwenImageLoraLoaderMixin
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel

from pipelines.pocket import architecture
from training.lightning import adapt, layout
from training.transformer import velocity


def test_the_file_fuses_to_what_was_trained() -> None:
    """A LoRA whose keys are not recognised loads nothing and says nothing."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    trained = QwenImageTransformer2DModel(**(architecture.TRANSFORMER | {"num_layers": 1}))
    fresh = QwenImageTransformer2DModel(**(architecture.TRANSFORMER | {"num_layers": 1}))
    fresh.load_state_dict(trained.state_dict())
    adapters = adapt(trained)
    for adapter in adapters.values():
        torch.nn.init.normal_(adapter.up, std=0.05)
        adapter.up.data = adapter.up.data.bfloat16().float()
        adapter.down.data = adapter.down.data.bfloat16().float()
    texts = (torch.randn(1, 5, 64), torch.ones(1, 5, dtype=torch.bool))
    inputs = (torch.randn(1, 16, 64), torch.tensor([0.5]), (torch.randn(1, 16, 64),), texts)
    with torch.no_grad():
        wanted, plain = velocity(trained, *inputs), velocity(fresh, *inputs)
        fresh.load_lora_adapter(QwenImageLoraLoaderMixin.lora_state_dict(layout(adapters)))
        fresh.fuse_lora()
        fused = velocity(fresh, *inputs)
    assert (plain - wanted).abs().max() > 0.01  # the change is there to be seen
    assert torch.allclose(fused, wanted, atol=1e-4)
