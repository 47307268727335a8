"""What the operator's precision comes to, for cards that need not be here."""

import itertools

import pytest

from core.errors import CapacityError
from pipelines.options import Mode, Precision, Tuning
from pipelines.precision import Device, choose, choose_whole

CPU = Device("cpu")
V100, T4, A100, RTX3090, L4, H100, B200, RTX5090 = (
    Device("cuda", capability)
    for capability in ((7, 0), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0))
)
EIGHT = Precision(mode="8bit")
COMPILED, OFFLOADED = Tuning(compile=True), Tuning(offload="model")


@pytest.mark.parametrize(
    ("device", "plain", "compiled", "with_loras"),
    [
        (CPU, "torchao-int8-weights", "torchao-int8-weights", "torchao-int8-weights"),
        (V100, "fp8-layerwise", "torchao-int8-weights", "torchao-int8-weights"),
        (T4, "bitsandbytes-int8", "bitsandbytes-int8", "bitsandbytes-int8"),
        (A100, "fp8-layerwise", "torchao-int8", "torchao-int8-weights"),
        (RTX3090, "fp8-layerwise", "torchao-int8", "torchao-int8-weights"),
        (L4, "fp8-layerwise", "torchao-fp8", "torchao-int8-weights"),
        (H100, "fp8-layerwise", "torchao-fp8", "torchao-int8-weights"),
        (B200, "fp8-layerwise", "torchao-fp8", "torchao-int8-weights"),
        (RTX5090, "fp8-layerwise", "torchao-fp8", "torchao-int8-weights"),
    ],
    ids=lambda value: value.name if isinstance(value, Device) else str(value),
)
def test_auto_picks_by_the_card(device: Device, plain: str, compiled: str, with_loras: str) -> None:
    """The fastest published scheme that the card multiplies; LoRAs where some are configured."""
    for scheme, tuning, loras in (
        (plain, Tuning(), False),
        (compiled, COMPILED, False),
        (with_loras, Tuning(), True),
    ):
        plan = choose(device, EIGHT, tuning, loras=loras)
        assert plan.schemes == {"denoiser": scheme, "text": scheme}


def test_auto_never_picks_what_the_settings_refuse() -> None:
    """Compiled layerwise casts, bitsandbytes' weights that would have to move, and casts under LoRAs."""
    for device, loras in itertools.product((V100, T4, A100, L4, H100), (False, True)):
        assert "fp8-layerwise" not in choose(device, EIGHT, COMPILED, loras=loras).schemes.values()
        assert "bitsandbytes-int8" not in choose(device, EIGHT, OFFLOADED, loras=loras).schemes.values()
        assert "fp8-layerwise" not in choose(device, EIGHT, Tuning(), loras=True).schemes.values()


@pytest.mark.parametrize("device", [V100, T4, A100, H100], ids=lambda device: device.name)
def test_auto_does_without_what_is_not_installed(device: Device) -> None:
    """fp8 casts need torch alone."""
    bare = Device(device.type, device.capability, frozenset())
    assert set(choose(bare, EIGHT, Tuning()).schemes.values()) == {"fp8-layerwise"}


def test_the_choice_is_explained() -> None:
    """The operator reads what was picked, for what, and why."""
    sentence = choose(H100, EIGHT, COMPILED).sentence
    assert "fp8 weights and activations" in sentence
    assert "sm90 multiplies fp8" in sentence
    assert "transformer and text encoder" in sentence
    assert "float32 on the CPU" in choose(CPU, Precision(), Tuning()).sentence
    assert "emulates" in choose(T4, Precision(), Tuning()).sentence
    assert "emulates" not in choose(A100, Precision(), Tuning()).sentence


@pytest.mark.parametrize(
    ("backend", "device", "tuning", "scheme"),
    [
        ("bitsandbytes", T4, Tuning(), "bitsandbytes-int8"),
        ("bitsandbytes", H100, COMPILED, "bitsandbytes-int8"),
        ("torchao-int8", A100, COMPILED, "torchao-int8"),
        ("torchao-int8", A100, Tuning(), "torchao-int8-weights"),
        ("torchao-int8", T4, COMPILED, "torchao-int8-weights"),
        ("torchao-fp8", L4, COMPILED, "torchao-fp8"),
        ("torchao-fp8", L4, Tuning(), "torchao-fp8-weights"),
        ("torchao-fp8", A100, COMPILED, "torchao-fp8-weights"),
        ("torchao-fp8", CPU, COMPILED, "torchao-fp8-weights"),
        ("fp8-layerwise", V100, Tuning(), "fp8-layerwise"),
    ],
)
def test_a_named_backend_is_used_as_far_as_the_card_goes(
    backend: str, device: Device, tuning: Tuning, scheme: str
) -> None:
    """Weights alone where activations cannot be rounded, or rounding them would only cost."""
    plan = choose(device, Precision(mode="8bit", eight_bit=backend), tuning)  # type: ignore[arg-type]
    assert set(plan.schemes.values()) == {scheme}


@pytest.mark.parametrize(
    ("mode", "compute", "device", "expected"),
    [
        ("bf16", "fp16", H100, "bfloat16"),
        ("fp16", "bf16", H100, "float16"),
        ("fp32", "fp16", H100, "float32"),
        ("8bit", "fp16", T4, "float16"),
        ("4bit", "bf16", H100, "bfloat16"),
        ("bf16", "bf16", CPU, "float32"),
        ("fp16", "bf16", CPU, "float32"),
        ("8bit", "fp16", CPU, "float32"),
    ],
)
def test_what_is_not_quantized_has_one_format(mode: str, compute: str, device: Device, expected: str) -> None:
    """BNB_COMPUTE speaks of 8bit and 4bit alone; a CPU computes in fp32."""
    plan = choose(device, Precision(mode=mode, compute=compute), Tuning())  # type: ignore[arg-type]
    assert {plan.format_of(role) for role in ("denoiser", "text", "vae")} == {expected}
    assert bool(plan.schemes) == (mode in ("8bit", "4bit"))


def test_an_autoencoder_that_overflows_in_fp16_is_kept_in_fp32() -> None:
    """SDXL's says so in its configuration; black pictures otherwise. bf16 reaches as far as fp32."""
    half = choose(H100, Precision(mode="fp16"), Tuning())
    assert half.format_of("vae", force_upcast=True) == "float32"
    assert (
        half.format_of("vae", force_upcast=False)
        == half.format_of("denoiser", force_upcast=True)
        == "float16"
    )
    assert choose(H100, Precision(), Tuning()).format_of("vae", force_upcast=True) == "bfloat16"


@pytest.mark.parametrize(
    ("components", "roles"),
    [("all", {"denoiser", "text"}), ("text", {"text"}), ("transformer", {"denoiser"})],
)
@pytest.mark.parametrize("mode", ["8bit", "4bit"])
def test_only_the_components_asked_for_are_quantized(mode: str, components: str, roles: set[str]) -> None:
    """QUANTIZE_COMPONENTS; the autoencoder never is."""
    plan = choose(H100, Precision(mode=mode, components=components), Tuning())  # type: ignore[arg-type]
    assert set(plan.schemes) == roles


@pytest.mark.parametrize(
    ("device", "precision", "remedy"),
    [
        (H100, Precision(mode="fp16"), "PRECISION_MODE"),
        (T4, Precision(mode="8bit", compute="fp16"), "BNB_COMPUTE=bf16"),
        (V100, Precision(mode="8bit", eight_bit="bitsandbytes"), "EIGHT_BIT_BACKEND=auto"),
        (Device("cuda", (9, 0), frozenset()), Precision(mode="4bit"), "PRECISION_MODE=8bit"),
        (
            Device("cuda", (9, 0), frozenset({"bitsandbytes"})),
            Precision(mode="8bit", eight_bit="torchao-fp8"),
            "install it or set EIGHT_BIT_BACKEND=auto",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_a_remedy(device: Device, precision: Precision, remedy: str) -> None:
    """For good: no retry mends a setting. The family here exceeds fp16, as Qwen-Image does."""
    with pytest.raises(CapacityError, match=remedy) as caught:
        choose(device, precision, Tuning(), half_overflows=True)
    assert (caught.value.code, caught.value.retryable) == ("not_ready", False)


def test_fp16_is_for_families_that_bear_it() -> None:
    """SDXL's UNet does; and on a CPU nothing is computed in fp16."""
    assert choose(H100, Precision(mode="fp16"), Tuning()).compute == "float16"
    assert choose(CPU, Precision(mode="fp16"), Tuning(), half_overflows=True).compute == "float32"


@pytest.mark.parametrize(
    ("device", "precision", "tuning", "words"),
    [
        (H100, Precision(eight_bit="bitsandbytes"), Tuning(), "EIGHT_BIT_BACKEND"),
        (H100, Precision(mode="4bit", eight_bit="bitsandbytes"), Tuning(), "EIGHT_BIT_BACKEND"),
        (H100, Precision(mode="fp16", components="text"), Tuning(), "QUANTIZE_COMPONENTS"),
        (CPU, Precision(), Tuning(offload="model"), "OFFLOAD is for GPUs"),
        (CPU, Precision(mode="8bit", cpu_offload=True), Tuning(), "INT8_CPU_OFFLOAD is for GPUs"),
    ],
)
def test_a_setting_that_changes_nothing_is_named(
    device: Device, precision: Precision, tuning: Tuning, words: str
) -> None:
    """Whoever asks for EIGHT_BIT_BACKEND alone would believe that the model is held in 8 bits."""
    assert words in choose(device, precision, tuning).sentence


@pytest.mark.parametrize("precision", [Precision(), Precision(mode="8bit", eight_bit="torchao-int8")])
def test_settings_in_effect_are_not_called_idle(precision: Precision) -> None:
    """Control: on a card these all do something."""
    sentence = choose(H100, precision, Tuning(offload="model")).sentence
    assert not any(name in sentence for name in ("EIGHT_BIT_BACKEND", "OFFLOAD", "QUANTIZE_COMPONENTS"))


@pytest.mark.parametrize("mode", ["bf16", "fp16", "8bit", "4bit"])
def test_a_model_that_ranks_its_candidates_computes_in_full(mode: Mode) -> None:
    """In coarser products, close candidates change places with whoever else is in the batch."""
    for device in (CPU, A100, H100):
        assert choose_whole(device, Precision(mode=mode), Tuning(), ranks=True).compute == "float32"
    assert choose_whole(H100, Precision(mode=mode), Tuning()).compute in ("bfloat16", "float16")


@pytest.mark.parametrize("ranks", [False, True])
@pytest.mark.parametrize(
    ("tuning", "name"),
    [
        (COMPILED, "TORCH_COMPILE"),
        (OFFLOADED, "OFFLOAD"),
        (Tuning(attention="xformers"), "ATTENTION_BACKEND"),
        (Tuning(vae_tiling=True), "VAE_TILING"),
        (Tuning(vae_slicing=True), "VAE_SLICING"),
    ],
)
def test_what_is_tuned_in_vain_is_named(tuning: Tuning, name: str, ranks: bool) -> None:
    """Models whose weights stay as they are have none of these parts; who set one should know."""
    assert name in choose_whole(H100, Precision(), tuning, ranks=ranks).sentence
    assert name not in choose_whole(H100, Precision(), Tuning(), ranks=ranks).sentence
