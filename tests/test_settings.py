"""Settings: a bad value stops start-up with a sentence that names the variable."""

import os
from pathlib import Path

import pytest

import settings
from pipelines.registry import catalog

pytestmark = pytest.mark.usefixtures("clean_environment")


def test_an_empty_environment_is_enough() -> None:
    """Nobody must write a configuration to start."""
    loaded = settings.load()
    assert (loaded.batch_size, loaded.batch_timeout_ms, loaded.api_port) == (4, 40, 8000)
    assert "~" not in str(loaded.cache_dir)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BATCH_SIZE", "0"),
        ("PORT", "abc"),
        ("API_WORKERS", "4"),
        ("WEBHOOK_SECRET", "whsec_no base64"),
        ("PRECISION_MODE", "int8"),
        ("USE_LIGHTNING_LORA", "perhaps"),
        ("LIGHTNING_STEPS", "few"),
        ("GPU_MAX_GIB", "0"),
        ("USER_LORAS", "comic"),
        ("USER_LORAS", "comic=/a.safetensors,comic=/b.safetensors"),
        ("WARM_UP", "1024"),
        ("FETCH_ALLOW_HOSTS", "files"),
        ("REQUEST_TIMEOUT_SECONDS", "inf"),
        ("DRAIN_SECONDS", "nan"),
    ],
)
def test_a_bad_value_names_its_variable(name: str, value: str) -> None:
    """The operator set PORT, so PORT is what the sentence must say."""
    os.environ[name] = value
    with pytest.raises(settings.BadSettings, match=f"^{name}: "):
        settings.load()


@pytest.mark.parametrize(
    ("chosen", "remedy"),
    [
        ({"TORCH_COMPILE": "1", "OFFLOAD": "model"}, "unset one"),
        ({"TORCH_COMPILE": "1", "INT8_CPU_OFFLOAD": "1", "PRECISION_MODE": "8bit"}, "unset one"),
        (
            {"TORCH_COMPILE": "1", "PRECISION_MODE": "8bit", "EIGHT_BIT_BACKEND": "fp8-layerwise"},
            "set EIGHT_BIT_BACKEND=auto",
        ),
        ({"PRECISION_MODE": "8bit", "OFFLOAD": "sequential"}, "set OFFLOAD=model"),
        ({"PRECISION_MODE": "4bit", "OFFLOAD": "model"}, "unset OFFLOAD"),
        (
            {"PRECISION_MODE": "8bit", "EIGHT_BIT_BACKEND": "bitsandbytes", "OFFLOAD": "model"},
            "set EIGHT_BIT_BACKEND=auto",
        ),
        ({"INT8_CPU_OFFLOAD": "1"}, "set OFFLOAD=model instead"),
        ({"PRECISION_MODE": "8bit", "INT8_CPU_OFFLOAD": "1", "OFFLOAD": "model"}, "unset one"),
    ],
)
def test_what_cannot_be_had_together_stops_the_start(chosen: dict[str, str], remedy: str) -> None:
    """Before anything is downloaded: the sentence names every variable of the pair, and a way out."""
    os.environ.update(chosen)
    with pytest.raises(settings.BadSettings, match=remedy) as caught:
        settings.load()
    sentence = str(caught.value).splitlines()[0]
    assert all(name in sentence for name in chosen if name != "PRECISION_MODE" or len(chosen) == 2)


def test_each_of_them_can_be_had_alone() -> None:
    """The refusals are of pairs."""
    for chosen in ({"TORCH_COMPILE": "1"}, {"OFFLOAD": "model"}, {"PRECISION_MODE": "4bit"}):
        os.environ.update(chosen)
        settings.load()
        for name in chosen:
            del os.environ[name]


def test_api_port_beats_port_beats_app_port() -> None:
    """Contract S6."""
    os.environ.update(APP_PORT="1", PORT="2")
    assert settings.load().api_port == 2
    os.environ["API_PORT"] = "3"
    assert settings.load().api_port == 3


def test_a_request_never_holds_more_pictures_than_may_wait() -> None:
    """It would be told to come back for ever; as a job it would never end, and hold the others up."""
    assert settings.load().pictures_at_once == 32
    os.environ["MAX_QUEUE"] = "4"
    assert settings.load().pictures_at_once == 4


def test_case_and_blanks_are_forgiven() -> None:
    """Nobody should lose an evening to BF16 against bf16."""
    os.environ.update(PRECISION_MODE=" BF16", LOG_LEVEL="debug", STANDALONE_MODE="1 ")
    loaded = settings.load()
    assert (loaded.precision_mode, loaded.log_level, loaded.standalone_mode) == ("bf16", "DEBUG", True)


def test_dotenv_reaches_the_libraries_that_read_the_environment(tmp_path: Path) -> None:
    """huggingface_hub and runpod never look into .env; the environment still wins."""
    Path(".env").write_text("HF_HOME=/volume\nRUNPOD_LOG_LEVEL=INFO\nBATCH_SIZE=7\n")
    os.environ["RUNPOD_LOG_LEVEL"] = "ERROR"
    assert settings.load().batch_size == 7
    assert os.environ["HF_HOME"] == "/volume"
    assert os.environ["RUNPOD_LOG_LEVEL"] == "ERROR"


def test_a_dotenv_in_another_encoding_is_named() -> None:
    """An editor's choice of encoding must not look like a crash of the worker."""
    Path(".env").write_bytes("LOG_LEVEL=INFO\n# Größe\n".encode("latin-1"))
    with pytest.raises(settings.BadSettings, match=r"\.env"):
        settings.load()


def test_secrets_are_not_printed() -> None:
    """Settings are logged at start-up."""
    os.environ["BUCKET_SECRET_ACCESS_KEY"] = "hunter2"
    assert "hunter2" not in repr(settings.load())


def test_few_steps_and_loras_reach_the_rows() -> None:
    """What a request may ask, and its defaults, are settled before any model is loaded."""
    os.environ.update(LIGHTNING_STEPS="4", USER_LORAS="comic=/l/comic.safetensors", MAX_LORAS_CACHE="2")
    loaded = settings.load()
    row = catalog(loaded.default_model, **loaded.row).default
    assert (row.steps, row.cfg, row.lightning_steps) == (4, 1.0, 4)
    assert (row.adapters, row.max_adapters, row.adapters_refused) == (frozenset({"comic"}), 2, None)
    os.environ.update(USE_LIGHTNING_LORA="0", PRECISION_MODE="4bit")
    loaded = settings.load()
    row = catalog(loaded.default_model, **loaded.row).default
    assert (row.steps, row.lightning_steps) == (40, None)
    assert row.adapters_refused is not None
