"""``--test_input``: what is run, and what is saved."""

import asyncio
import json
from pathlib import Path

import pytest
from PIL import Image as Pillow

from api.intake import ImageIntake, IntakeOptions
from core.request import InferenceRequest
from core.result import InferenceResult, OnProgress
from serverless.local import BadTestInput, Recorder, job_for, job_of, printable
from tests.serverless.edits import dialect, job, photograph
from tests.serverless.painting import CATALOG, colour, painted


def test_a_file_and_inline_json_are_told_apart(tmp_path: Path) -> None:
    """The SDK alone takes only JSON and ends with a traceback when it is given a file."""
    file = tmp_path / "job.json"
    file.write_text(json.dumps(job("a")))
    assert job_of(str(file)) == job("a")
    assert job_of(json.dumps(job("a"))) == job("a")


def test_the_default_job_is_run_only_where_nothing_else_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``python handler.py`` on a laptop edits the photograph; on RunPod it must not."""
    monkeypatch.chdir(tmp_path)
    Path("test_input.json").write_text(json.dumps(job("a")))
    assert job_for(None, tmp_path, needed=True) == job("a")
    assert job_for(None, tmp_path, needed=False) is None
    assert job_for(json.dumps(job("b")), tmp_path, needed=False) == job("b")


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("missing.json", "missing.json: no such file"),
        ("{broken", "--test_input is not valid JSON"),
        ("{}", "must look like"),
        ('{"input": "text"}', "must look like"),
        ("[1]", "no such file"),
    ],
)
def test_what_is_no_job_is_a_sentence(argument: str, words: str) -> None:
    """It is read by the person who typed it."""
    with pytest.raises(BadTestInput, match=words):
        job_of(argument)


def test_a_file_that_is_no_text_is_a_sentence(tmp_path: Path) -> None:
    """A picture in the place of the job is an easy slip."""
    file = tmp_path / "photo.png"
    file.write_bytes(b"\x89PNG\xff")
    with pytest.raises(BadTestInput, match="cannot be read as text"):
        job_of(str(file))


def test_pictures_are_saved_before_and_after(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The demonstration is to look at both."""

    async def submit(request: InferenceRequest, on_progress: OnProgress | None = None) -> InferenceResult:
        return painted(request)

    async def main() -> InferenceRequest:
        with ImageIntake(IntakeOptions()) as intake:
            asked = await dialect(intake).parse(job("a", width=50, height=40)["input"], id="a")
            await Recorder(submit, intake, CATALOG, tmp_path)(asked.request)
            return asked.request

    request = asyncio.run(main())
    with Pillow.open(tmp_path / "before.png") as before:
        assert (before.size, before.getpixel((0, 0))) == ((64, 48), (10, 120, 200))
    with Pillow.open(tmp_path / "after.png") as after:
        assert (after.size, after.getpixel((0, 0))) == ((50, 40), colour("paint", request.seed, 4))
    printed = capsys.readouterr().out
    assert str(tmp_path / "before.png") in printed
    assert str(tmp_path / "after.png") in printed
    assert "painting was never trained" in printed, "nobody may take it for an editor of everything"


def record(folder: Path, *, png_metadata: bool = True, **wishes: object) -> InferenceRequest:
    """A job of the model that also generates, recorded in ``folder``."""

    async def submit(request: InferenceRequest, on_progress: OnProgress | None = None) -> InferenceResult:
        return painted(request)

    async def main() -> InferenceRequest:
        with ImageIntake(IntakeOptions(png_metadata=png_metadata)) as intake:
            asked = await dialect(intake).parse({"prompt": "paint", "model": "imagining", **wishes}, id="a")
            await Recorder(submit, intake, CATALOG, folder)(asked.request)
            return asked.request

    return asyncio.run(main())


def test_a_picture_of_a_text_alone_has_no_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What an earlier job went in with would be taken for it; what is not ours stays."""
    (tmp_path / "before-holiday.png").touch()
    picture, mask = photograph(), photograph()
    record(tmp_path, images=[picture, picture], mask=mask, num_inference_steps=4)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("before.png", "before-2.png", "mask.png", "after.png"),
        "before-holiday.png",
    }
    assert "imagining: 2 steps" in capsys.readouterr().out, "strength 0.5 of 4 steps runs 2"
    request = record(tmp_path, width=80, height=48)
    assert {path.name for path in tmp_path.iterdir()} == {"after.png", "before-holiday.png"}
    with Pillow.open(tmp_path / "after.png") as after:
        assert (after.size, after.getpixel((0, 0))) == ((80, 48), colour("paint", request.seed, 4))
    assert "imagining was never trained" in capsys.readouterr().out


@pytest.mark.parametrize("wanted", [True, False])
def test_the_picture_that_comes_out_tells_how_it_was_made(wanted: bool, tmp_path: Path) -> None:
    """As every PNG that is served, where PNG_METADATA wants it; what went in stays the caller's."""
    record(tmp_path, png_metadata=wanted, images=[photograph()])
    with Pillow.open(tmp_path / "after.png") as after:
        assert after.info.get("parameters", "").startswith("paint\nSteps: ") is wanted
        assert bool(after.info) is wanted
    with Pillow.open(tmp_path / "before.png") as before:
        assert "parameters" not in before.info


def test_the_printed_answer_holds_no_picture() -> None:
    """The SDK prints the result: kilobytes of base64 would hide the lines that matter."""
    assert printable({"image": "abcd", "seed": 1}) == {"image": "(4 characters of base64)", "seed": 1}
    assert printable({"error": "no"}) == {"error": "no"}


def test_a_folder_that_cannot_be_written_to_is_named_before_anything_is_loaded(tmp_path: Path) -> None:
    """Else the sentence would come after minutes of loading, and not at all."""
    (tmp_path / "file").touch()
    with pytest.raises(BadTestInput, match=r"^OUTPUT_DIR: "):
        job_for(json.dumps(job("b")), tmp_path / "file" / "out", needed=True)
