"""The command line."""

import pytest

import settings
from serverless.usage import Command, parse, table

ROWS = [("BATCH_SIZE", "4", "most requests in one forward"), ("HF_TOKEN", "", "token " * 30)]


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        ([], Command()),
        (["--check"], Command(check=True)),
        (["--test_input"], Command(test_input="test_input.json")),
        (["--test_input", "job.json"], Command(test_input="job.json")),
        (["--test_input", '{"input": {}}'], Command(test_input='{"input": {}}')),
        (["download", "sdxl-turbo", "pocket-edit"], Command(models=("sdxl-turbo", "pocket-edit"))),
        (["download", "--verify", "sdxl-turbo"], Command(models=("sdxl-turbo",), verify=True)),
        (["--rp_serve_api", "--rp_api_port", "8001"], Command(for_sdk=True)),
        (["--rp_log_level", "ERROR", "--test_input"], Command(test_input="test_input.json", for_sdk=True)),
    ],
)
def test_commands(arguments: list[str], command: Command) -> None:
    """``--rp_…`` belongs to the SDK, which reads it itself."""
    assert parse(arguments, ROWS) == command


def test_a_misspelt_option_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """``--chekc`` must not start a worker."""
    with pytest.raises(SystemExit) as caught:
        parse(["--chekc"], ROWS)
    assert caught.value.code == 2
    assert "--chekc" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["download"], ["download", "--chekc", "pocket-edit"]])
def test_a_download_of_nothing_is_refused(arguments: list[str]) -> None:
    """It must not start a worker instead."""
    with pytest.raises(SystemExit) as caught:
        parse(arguments, ROWS)
    assert caught.value.code == 2


def test_help_shows_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    """It is generated from the settings class, so it cannot be behind."""
    with pytest.raises(SystemExit) as caught:
        parse(["--help"], settings.describe())
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    described = list(settings.describe())
    assert len(described) > 20
    for variable, _, _ in described:
        assert f"  {variable} " in shown


def test_the_table_wraps_and_shows_defaults() -> None:
    """A terminal is narrower than a description."""
    lines = table(ROWS, width=80).splitlines()
    assert lines[0] == "  BATCH_SIZE                most requests in one forward [4]"
    assert len(lines) > 3
    assert all(len(line) <= 80 for line in lines)
