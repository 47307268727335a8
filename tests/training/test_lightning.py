"""The Lightning LoRA's file is one that the family's own loader reads whole."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import QwenImageEditPlusPipeline
from safetensors.torch import load_file, save_file

from pipelines.lightning import fuse
from pipelines.lora_files import find
from pipelines.options import ModelOptions
from pipelines.pocket import architecture
from pipelines.pocket.builder import build
from pipelines.pocket.folder import WEIGHTS
from pipelines.qwen_loading import read_processor
from training.editor import Editor
from training.lightning import ALPHA, RANK, adapt, layout
from training.transformer import velocity

LORA = WEIGHTS / "lightning-4steps.safetensors"
PER_BLOCK = 12
LAYERS = PER_BLOCK * architecture.TRANSFORMER["num_layers"]


def test_the_file_fuses_to_what_was_trained(tmp_path: Path) -> None:
    """Alpha counts: a reader that forgets it doubles the change."""
    torch.manual_seed(0)
    trained = QwenImageTransformer2DModel(**(architecture.TRANSFORMER | {"num_layers": 1}))
    fresh = QwenImageTransformer2DModel(**(architecture.TRANSFORMER | {"num_layers": 1}))
    fresh.load_state_dict(trained.state_dict())
    adapters = adapt(trained)
    assert len(adapters) == PER_BLOCK
    for adapter in adapters.values():
        torch.nn.init.normal_(adapter.up, std=0.2)
        adapter.up.data = adapter.up.data.bfloat16().float()
        adapter.down.data = adapter.down.data.bfloat16().float()
    texts = (torch.randn(1, 5, 64), torch.ones(1, 5, dtype=torch.bool))
    inputs = (torch.randn(1, 16, 64), torch.tensor([0.5]), (torch.randn(1, 16, 64),), texts, (4, 4))
    save_file(layout(adapters), tmp_path / "lora.safetensors")
    with torch.no_grad():
        wanted, plain = velocity(trained, *inputs), velocity(fresh, *inputs)
        fuse(fresh, find(str(tmp_path / "lora.safetensors"), ModelOptions()))
        fused = velocity(fresh, *inputs)
    assert (plain - wanted).abs().max() > 0.01  # the change is there to be seen
    assert torch.allclose(fused, wanted, atol=1e-4)


def test_the_committed_file_has_the_family_s_layout() -> None:
    """Down, up and alpha of each layer, as in the files of lightx2v; bf16."""
    weights = load_file(LORA)
    layers = {name.removesuffix(".alpha") for name in weights if name.endswith(".alpha")}
    assert len(layers) == LAYERS
    assert set(weights) == {
        f"{layer}.{end}" for layer in layers for end in ("lora_down.weight", "lora_up.weight", "alpha")
    }
    model = QwenImageTransformer2DModel(**architecture.TRANSFORMER)
    for layer in layers:
        linear = model.get_submodule(layer)
        assert weights[f"{layer}.lora_down.weight"].shape == (RANK, linear.in_features)
        assert weights[f"{layer}.lora_up.weight"].shape == (linear.out_features, RANK)
        assert weights[f"{layer}.alpha"] == ALPHA
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}


@pytest.fixture
def stock(options: ModelOptions) -> Any:
    folder = build(options.cache_dir)
    processor = read_processor(folder)
    return QwenImageEditPlusPipeline.from_pretrained(folder, processor=processor, dtype=torch.float32)


def test_stock_diffusers_loads_and_fuses_it_whole(stock: Any) -> None:
    """As anyone would: three calls, after which no wrapper is left and the weights are other ones."""
    before = {name: weight.clone() for name, weight in stock.transformer.state_dict().items()}
    stock.load_lora_weights(str(LORA.parent), weight_name=LORA.name)
    assert sum(hasattr(module, "lora_A") for module in stock.transformer.modules()) == LAYERS
    stock.fuse_lora()
    stock.unload_lora_weights()
    after = stock.transformer.state_dict()
    assert after.keys() == before.keys()
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    # What the text side of the last block says reaches no pixel, so it learned nothing.
    unheard = {
        f"transformer_blocks.3.{layer}.weight"
        for layer in ("attn.add_q_proj", "attn.to_add_out", "txt_mlp.net.0.proj", "txt_mlp.net.2")
    }
    adapted = {name.replace(".alpha", ".weight") for name in load_file(LORA) if name.endswith(".alpha")}
    assert changed == adapted - unheard


def test_worker_and_stock_fuse_to_the_same_weights(stock: Any, fused: Editor) -> None:
    """What is measured is what users of diffusers get."""
    stock.load_lora_weights(str(LORA.parent), weight_name=LORA.name)
    stock.fuse_lora()
    stock.unload_lora_weights()
    ours = fused._pipeline._parts.transformer.state_dict()
    assert all(torch.equal(weight, ours[name]) for name, weight in stock.transformer.state_dict().items())
