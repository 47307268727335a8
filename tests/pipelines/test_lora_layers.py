"""A LoRA put on unfused changes a model by exactly what its file says, whatever the file calls the layers."""

import copy
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.lora_pipeline import QwenImageLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from pipelines.adapters import AdapterSet
from pipelines.lightning import fuse
from pipelines.lora_files import find
from pipelines.lora_keys import BadLora, Part
from pipelines.lora_layers import Targets, adapted, attach, detach, read
from pipelines.options import ModelOptions
from pipelines.pocket import architecture
from pipelines.unet_names import original_names
from tests.pipelines import loras

# Outputs are of size 1; measured: 3.1e-6 at most, and 0.1 and more where a LoRA or its alpha is left out.
TOLERANCE = 1e-5
VISIBLE = 1000
OFFLINE = ModelOptions(local_only=True)
BLOCKS = "transformer_blocks"
bitsandbytes: Any = importlib.import_module("bitsandbytes.nn")
torchao: Any = importlib.import_module("torchao.quantization")  # has no types


@pytest.fixture(scope="module")
def transformer() -> Any:
    torch.manual_seed(0)
    config = architecture.TRANSFORMER | {"num_layers": 2}
    return QwenImageTransformer2DModel(**config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def unet() -> Any:
    """SDXL's blocks at a hundredth of their width."""
    torch.manual_seed(0)
    return (
        UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16, 16),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
            cross_attention_dim=16,
            attention_head_dim=4,
            transformer_layers_per_block=(1, 1, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=32,
        )
        .eval()
        .requires_grad_(False)
    )


def clip(kind: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokens = {"vocab_size": 100, "bos_token_id": 0, "eos_token_id": 1}
    return kind(CLIPTextConfig(**sizes, **tokens, projection_dim=8)).eval().requires_grad_(False)


@torch.no_grad()
def run(model: Any) -> torch.Tensor:
    """One forward of any of the models here, on fixed inputs of size 1."""
    generator = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(model.dtype)

    if isinstance(model, UNet2DConditionModel):
        added = {"text_embeds": noise(1, 8), "time_ids": torch.ones(1, 6)}
        output = model(noise(1, 4, 8, 8), torch.tensor([500]), noise(1, 5, 16), added_cond_kwargs=added)[0]
    elif isinstance(model, QwenImageTransformer2DModel):
        output = model(
            hidden_states=noise(1, 16, 64),
            timestep=torch.tensor([0.5]).to(model.dtype),
            encoder_hidden_states=noise(1, 5, model.config.joint_attention_dim),
            img_shapes=[[(1, 4, 4)]],
            return_dict=False,
        )[0]
    else:
        output = model(input_ids=torch.tensor([[0, 7, 8, 9, 1]]))[0]
    answer: torch.Tensor = output.float()
    return answer / answer.std()


def put_on(path: Path, targets: Targets, adapter: str = "user") -> None:
    file = find(str(path), OFFLINE)
    cpu = torch.device("cpu")
    for part, factors in read(file, targets.match(file), dtype=torch.float32, device=cpu).items():
        attach(targets.models[part], adapter, factors)
        activate(targets.models[part], adapter)


def activate(model: Any, adapter: str) -> None:
    for _, layer in adapted(model):
        layer.set_adapter(adapter, inference_mode=True)


def apart(one: Any, other: Any) -> float:
    return float((run(one) - run(other)).abs().max())


@pytest.mark.parametrize("layout", loras.LAYOUTS)
def test_a_lora_does_what_its_factors_multiply_to(layout: str, transformer: Any, tmp_path: Path) -> None:
    """In each layout; with the scale left out it would be seen."""
    pairs = loras.pairs_for(transformer, where=BLOCKS)
    model = copy.deepcopy(transformer)
    put_on(loras.written(tmp_path / "a.safetensors", pairs, layout), Targets({"denoiser": model}))
    scale = loras.LAYOUTS[layout][1]
    assert apart(model, loras.merge(copy.deepcopy(transformer), pairs, scale)) < TOLERANCE
    assert apart(model, loras.merge(copy.deepcopy(transformer), pairs, scale * 1.5)) > VISIBLE * TOLERANCE
    assert apart(model, transformer) > VISIBLE * TOLERANCE


@pytest.mark.parametrize("layout", ["lightx2v", "kohya", "ComfyUI", "default", "diffusers"])
def test_it_is_what_diffusers_reads(layout: str, transformer: Any, tmp_path: Path) -> None:
    """The layouts that its own loader understands mean the same here."""
    pairs = loras.pairs_for(transformer, where=BLOCKS)
    path = loras.written(tmp_path / "a.safetensors", pairs, layout)
    ours, theirs = copy.deepcopy(transformer), copy.deepcopy(transformer)
    put_on(path, Targets({"denoiser": ours}))
    state = QwenImageLoraLoaderMixin.lora_state_dict(load_file(path))
    QwenImageLoraLoaderMixin.load_lora_into_transformer(state, theirs)
    assert apart(ours, theirs) < TOLERANCE


def test_layers_of_different_ranks_live_together(transformer: Any, tmp_path: Path) -> None:
    """One file, and its names end alike: a pattern for one must not take another."""
    pairs = loras.pairs_for(transformer, where="attn.to_q", rank=2)
    pairs |= loras.pairs_for(transformer, where="attn.to_k", rank=8)
    pairs |= loras.pairs_for(transformer, where="img_in", rank=3)
    model = copy.deepcopy(transformer)
    put_on(loras.written(tmp_path / "a.safetensors", pairs), Targets({"denoiser": model}))
    assert apart(model, loras.merge(copy.deepcopy(transformer), pairs)) < TOLERANCE


def test_taken_off_nothing_is_left(transformer: Any, tmp_path: Path) -> None:
    """Same modules, same weights, same output bit for bit; the other of two stays until it goes too."""
    model = copy.deepcopy(transformer)
    kinds = [type(module) for module in model.modules()]
    targets = Targets({"denoiser": model})
    for number, adapter in enumerate(("one", "two")):
        pairs = loras.pairs_for(transformer, seed=number, where="attn.to_q")
        put_on(loras.written(tmp_path / "a.safetensors", pairs), targets, adapter)
    second = run(model)
    detach(model, "one")
    activate(model, "two")
    assert torch.equal(run(model), second)
    detach(model, "two")
    assert torch.equal(run(model), run(transformer))
    assert [type(module) for module in model.modules()] == kinds
    assert model.state_dict().keys() == transformer.state_dict().keys()
    assert not hasattr(model, "peft_config")


def in_original_names(pairs: loras.Pairs, layers_per_block: int) -> dict[str, torch.Tensor]:
    others = {name: original for original, name in original_names(pairs, layers_per_block).items()}
    renamed = {others.get(name, name): pair for name, pair in pairs.items()}
    assert not any("down_blocks" in name or "up_blocks" in name for name in renamed)
    return loras.LAYOUTS["kohya"][0](renamed)


@pytest.mark.parametrize("original", [False, True], ids=["diffusers' names", "original names"])
def test_every_layer_of_a_unet_is_known_by_both_names(original: bool, unet: Any, tmp_path: Path) -> None:
    """SDXL's LoRAs are published under either; diffusers' reader is the judge of both."""
    pairs = loras.pairs_for(unet)
    if not original:  # these two diffusers itself mistakes for one, and leaves out
        pairs = {name: pair for name, pair in pairs.items() if "add_embedding" not in name}
    weights = in_original_names(pairs, 2) if original else loras.LAYOUTS["kohya"][0](pairs)
    ours, theirs = copy.deepcopy(unet), copy.deepcopy(unet)
    put_on(loras.write(tmp_path / "a.safetensors", weights), Targets({"denoiser": ours}))
    assert len(adapted(ours)) == len(pairs)
    assert apart(ours, loras.merge(copy.deepcopy(unet), pairs, loras.ALPHA / 4)) < TOLERANCE
    state, alphas = StableDiffusionXLLoraLoaderMixin.lora_state_dict(weights, unet_config=unet.config)
    StableDiffusionXLLoraLoaderMixin.load_lora_into_unet(state, alphas, theirs)
    assert apart(ours, theirs) < TOLERANCE


def test_a_unet_takes_a_lightning_lora_whole(unet: Any, tmp_path: Path) -> None:
    """SDXL-Lightning's LoRA form: fused, convolutions too, with no layer left wrapped."""
    pairs, fused = loras.pairs_for(unet), copy.deepcopy(unet)
    weights = in_original_names(pairs, 2)
    fuse(fused, find(str(loras.write(tmp_path / "a.safetensors", weights)), OFFLINE))
    assert apart(fused, loras.merge(copy.deepcopy(unet), pairs, loras.ALPHA / 4)) < TOLERANCE
    assert [type(module) for module in fused.modules()] == [type(module) for module in unet.modules()]


@pytest.mark.parametrize(
    ("kind", "part", "prefix", "outer"),
    [
        (CLIPTextModel, "text_encoder", "lora_te1_", ""),
        (CLIPTextModel, "text_encoder", "lora_te1_", "text_model."),
        (CLIPTextModelWithProjection, "text_encoder_2", "lora_te2_", "text_model."),
    ],
)
def test_text_encoders_are_changed_too(
    kind: Any, part: Part, prefix: str, outer: str, unet: Any, tmp_path: Path
) -> None:
    """Half of a LoRA is another style; transformers 5 dropped a level from the first encoder's names."""
    encoder = clip(kind)
    pairs = loras.pairs_for(encoder, where="encoder.layers", size=0.2)
    published = {outer + name.removeprefix("text_model."): pair for name, pair in pairs.items()}
    weights = loras.LAYOUTS["kohya"][0](published)
    weights = {key.replace("lora_unet_", prefix): weight for key, weight in weights.items()}
    model = copy.deepcopy(encoder)
    put_on(loras.write(tmp_path / "a.safetensors", weights), Targets({"denoiser": unet, part: model}))
    assert apart(model, loras.merge(copy.deepcopy(encoder), pairs, loras.ALPHA / 4)) < TOLERANCE
    assert apart(model, encoder) > VISIBLE * TOLERANCE
    assert not adapted(unet)


def test_a_set_changes_three_models_and_gives_them_back(unet: Any, tmp_path: Path) -> None:
    """SDXL's: one id, one scale, the denoiser and both text encoders; off again, all are themselves."""
    plain = {
        "denoiser": unet,
        "text_encoder": clip(CLIPTextModel),
        "text_encoder_2": clip(CLIPTextModelWithProjection),
    }
    prefixes = {"denoiser": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
    weights: dict[str, torch.Tensor] = {}
    merged: dict[str, Any] = {}
    for part, model in plain.items():
        pairs = loras.pairs_for(model, where="attn", size=0.2)
        named = loras.LAYOUTS["kohya"][0](pairs)
        weights |= {key.replace("lora_unet_", prefixes[part]): value for key, value in named.items()}
        merged[part] = loras.merge(copy.deepcopy(model), pairs, 0.5 * loras.ALPHA / 4)
    path = loras.write(tmp_path / "a.safetensors", weights)
    models: dict[Part, Any] = {
        "denoiser": copy.deepcopy(unet),
        "text_encoder": clip(CLIPTextModel),
        "text_encoder_2": clip(CLIPTextModelWithProjection),
    }
    options = ModelOptions(adapters={"a": str(path)})
    adapters = AdapterSet(models, options, dtype=torch.float32, device=torch.device("cpu"))
    lease = adapters.hold((("a", 0.5),))
    adapters.use((("a", 0.5),))
    for part, model in models.items():
        assert apart(model, merged[part]) < TOLERANCE < VISIBLE * TOLERANCE < apart(model, plain[part])
    adapters.use(())
    assert all(torch.equal(run(model), run(plain[part])) for part, model in models.items())
    del lease


REFUSED: dict[str, tuple[str, tuple[int, int], str]] = {
    "a layer that is not there": ("transformer_blocks.99.attn.to_q", (64, 64), "Qwen-Image models"),
    "another family": ("down_blocks.1.attentions.0.proj_in", (64, 64), "Stable Diffusion models"),
    "another size": ("transformer_blocks.0.attn.to_q", (3072, 3072), "another size"),
    "a norm": ("transformer_blocks.0.attn.norm_q", (64, 64), "no such layers"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_lora_that_does_not_fit_is_refused_by_name(case: str, transformer: Any, tmp_path: Path) -> None:
    """Also when all of its other layers fit: part of a LoRA is none."""
    name, (inputs, outputs), sentence = REFUSED[case]
    pairs = loras.pairs_for(transformer, where="attn.to_k")
    pairs[name] = torch.randn(4, inputs), torch.randn(outputs, 4)
    file = find(str(loras.written(tmp_path / "a.safetensors", pairs)), OFFLINE)
    with pytest.raises(BadLora, match=sentence):
        Targets({"denoiser": transformer}).match(file)


def test_a_text_encoders_layers_need_a_text_encoder(transformer: Any, tmp_path: Path) -> None:
    """A family without LoRAs for its text refuses them; it does not drop them."""
    pairs = loras.pairs_for(transformer, where="attn.to_k")
    weights = loras.LAYOUTS["kohya"][0](pairs)
    weights |= {
        key.replace("lora_unet_", "lora_te1_"): weight.clone() for key, weight in list(weights.items())
    }
    file = find(str(loras.write(tmp_path / "a.safetensors", weights)), OFFLINE)
    with pytest.raises(BadLora):
        Targets({"denoiser": transformer}).match(file)


SPOILED: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "NaN": (lambda w: w["img_in.lora_B.weight"].fill_(float("nan")), "no numbers"),
    "infinity": (lambda w: w["img_in.lora_A.weight"].fill_(float("inf")), "no numbers"),
    "a vast alpha": (lambda w: w["img_in.alpha"].fill_(1e9), "alpha"),
    "an alpha that is no number": (lambda w: w["img_in.alpha"].fill_(float("nan")), "alpha"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_values_that_would_spoil_every_picture_are_refused(
    case: str, transformer: Any, tmp_path: Path
) -> None:
    """Found when they are read, before any of them is put on."""
    spoil, sentence = SPOILED[case]
    weights = loras.LAYOUTS["bare"][0](loras.pairs_for(transformer, where="img_in"))
    weights["img_in.alpha"] = torch.tensor(4.0)
    spoil(weights)
    model = copy.deepcopy(transformer)
    with pytest.raises(BadLora, match=sentence):
        put_on(loras.write(tmp_path / "a.safetensors", weights), Targets({"denoiser": model}))
    assert not adapted(model)


def in_eight_bits_by_bitsandbytes(model: Any) -> None:
    for name, layer in list(model.named_modules()):
        if isinstance(layer, torch.nn.Linear) and BLOCKS in name:
            quantized = bitsandbytes.Linear8bitLt(
                layer.in_features, layer.out_features, layer.bias is not None, has_fp16_weights=False
            )
            quantized.load_state_dict(layer.state_dict())
            model.set_submodule(name, quantized.to("cpu"))


def in_eight_bits_by_torchao(model: Any) -> None:
    scheme = torchao.Int8WeightOnlyConfig()
    torchao.quantize_(
        model, scheme, lambda layer, name: BLOCKS in name and isinstance(layer, torch.nn.Linear)
    )


def in_four_bits(model: Any) -> None:
    layer = model.get_submodule("transformer_blocks.0.attn.to_q")
    four = bitsandbytes.Linear4bit(layer.in_features, layer.out_features)
    model.set_submodule("transformer_blocks.0.attn.to_q", four)


def in_eight_bit_floats(model: Any) -> None:
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


@pytest.mark.parametrize("quantize", [in_eight_bits_by_bitsandbytes, in_eight_bits_by_torchao])
def test_it_works_over_eight_bit_weights(quantize: Any, transformer: Any, tmp_path: Path) -> None:
    """The weights stay as they are; what the LoRA adds is computed beside them, in full."""
    model = copy.deepcopy(transformer)
    quantize(model)
    before = run(model)
    pairs = loras.pairs_for(transformer, where=BLOCKS)
    put_on(loras.written(tmp_path / "a.safetensors", pairs), Targets({"denoiser": model}))
    merged = loras.merge(copy.deepcopy(transformer), pairs)
    coarse = float((before - run(transformer)).abs().max())
    assert apart(model, merged) < 2 * coarse < apart(model, transformer) / 2
    detach(model, "user")
    assert torch.equal(run(model), before)


@pytest.mark.parametrize(
    ("quantize", "variable"),
    [(in_four_bits, "PRECISION_MODE"), (in_eight_bit_floats, "EIGHT_BIT_BACKEND")],
)
def test_weights_that_take_none_are_refused(
    quantize: Any, variable: str, transformer: Any, tmp_path: Path
) -> None:
    """Seen in the layers themselves, whatever the settings said."""
    model = copy.deepcopy(transformer)
    quantize(model)
    file = find(
        str(loras.written(tmp_path / "a.safetensors", loras.pairs_for(transformer, where="attn.to_q"))),
        OFFLINE,
    )
    with pytest.raises(BadLora, match=variable):
        Targets({"denoiser": model}).match(file)
