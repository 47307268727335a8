"""AUTOMATIC1111's web API, asked by its Python client and with the bodies that front ends send."""

import base64
import io
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image as Pillow
from webuiapi import WebUIApi

from api.automatic1111_fields import IGNORED, REFUSED
from api.gate import AccessOptions
from api.keys import KeyRing
from core.request import InferenceRequest, Task
from tests.api.serving import Answer, Served, paint, png, serving, text
from tests.api.test_hostile import BODIES, SECRET, bomb, check_refusal

ARTIST = {"override_settings": {"sd_model_checkpoint": "artist"}}
MASK = text(png(mode="L", colour=(255,)))


@pytest.fixture
def keyed() -> Iterator[Served]:
    """Callers a, b and c have a key each."""
    with serving(access=AccessOptions(keys=KeyRing.of(True, ["a", "b", "c"]))) as running:
        yield running


def post(served: Served, name: str, body: object, key: str = "") -> Answer:
    headers = {"X-API-Key": key} if key else {}
    return served.client.request("POST", f"/sdapi/v1/{name}", json.dumps(body).encode(), headers)


def get(served: Served, name: str, key: str = "") -> Any:
    answer = served.client.request("GET", f"/sdapi/v1/{name}", headers={"X-API-Key": key} if key else {})
    assert answer.status == 200
    return answer.json()


def pictures(answer: Answer) -> list[Pillow.Image]:
    assert answer.status == 200, answer.body
    return [Pillow.open(io.BytesIO(base64.b64decode(i, validate=True))) for i in answer.json()["images"]]


def asked(served: Served) -> InferenceRequest:
    return served.painter.entered.get(timeout=5)


@pytest.fixture
def client(fresh: Served) -> Iterator[WebUIApi]:
    """Everything it has a default for, it sends."""
    client = WebUIApi(host="127.0.0.1", port=fresh.client.port)
    client.set_auth("user", "key")
    yield client
    client.session.close()


def test_the_clients_text_to_image(client: WebUIApi, fresh: Served) -> None:
    """Choosing a model as the client does, and two pictures of one text."""
    assert client.util_get_model_names() == ["artist", "dreamer", "painter"]
    client.util_set_model("dreamer")
    assert client.util_get_current_model() == "dreamer"
    result = client.txt2img(
        prompt="a lighthouse",
        negative_prompt="fog",
        seed=1000,
        steps=8,
        cfg_scale=5,
        width=96,
        height=64,
        batch_size=2,
    )
    assert [picture.getpixel((0, 0)) for picture in result.images] == [tuple(paint(s)) for s in (1000, 1001)]
    assert [picture.size for picture in result.images] == [(96, 64)] * 2
    assert result.info["all_seeds"] == [1000, 1001]
    assert result.info["infotexts"] == [picture.info["parameters"] for picture in result.images]
    assert result.parameters["override_settings"] == {"sd_model_checkpoint": "dreamer"}
    first, second = asked(fresh), asked(fresh)
    assert (first.task, first.model, first.negative_prompt) == (Task.GENERATE, "dreamer", "fog")
    assert (first.steps, first.cfg, first.size) == (8, 5.0, (96, 64))
    assert first.id != second.id


def test_the_clients_image_to_image(client: WebUIApi, fresh: Served) -> None:
    """With a mask, and the strength under the web UI's name."""
    client.util_set_model("artist")
    picture = Pillow.new("RGB", (96, 64), (9, 9, 9))
    result = client.img2img(
        images=[picture],
        mask_image=Pillow.new("L", (96, 64), 255),
        prompt="make it night",
        denoising_strength=0.5,
        width=96,
        height=64,
        seed=7,
    )
    assert result.image.getpixel((0, 0)) == tuple(paint(7))
    request = asked(fresh)
    assert (request.task, request.strength, len(request.images)) == (Task.EDIT, 0.5, 1)
    assert request.mask is not None
    assert result.info["denoising_strength"] == 0.5


def test_the_clients_small_questions(client: WebUIApi) -> None:
    """None of them may fail: front ends ask them to see whether anybody is there."""
    assert client.get_options()["sd_model_checkpoint"] == "painter"
    assert [sampler["name"] for sampler in client.get_samplers()] == ["Euler"]
    assert client.get_progress()["state"]["job_count"] == 0
    assert client.interrupt() == {}


# As their sources write them.
FRONT_ENDS: dict[str, dict[str, Any]] = {
    "Open WebUI": {"prompt": "p", "batch_size": 1, "width": 96, "height": 64}
    | {"steps": 9, "negative_prompt": "fog"},
    "LibreChat": {"prompt": "p", "negative_prompt": "fog", "cfg_scale": 4.5, "steps": 22}
    | {"width": 1024, "height": 1024},
    "SillyTavern": {
        **{"url": "http://127.0.0.1:7860", "auth": "", "prompt": "p", "negative_prompt": ""},
        **{"sampler_name": "DPM++ 2M", "scheduler": "Karras", "steps": 20, "cfg_scale": 7},
        **{"width": 96, "height": 64, "restore_faces": False, "enable_hr": False, "hr_upscaler": "Latent"},
        **{"hr_scale": 1.5, "hr_additional_modules": [], "denoising_strength": 0.7},
        **{"hr_second_pass_steps": 0, "clip_skip": 1, "save_images": True, "send_images": True},
        **{"do_not_save_grid": False, "do_not_save_samples": False},
        "override_settings": {"CLIP_stop_at_last_layers": 1, "sd_vae": "Automatic"},
        "override_settings_restore_afterwards": True,
    },
    "the web UI's own tests": {
        **{"enable_hr": False, "denoising_strength": 0, "firstphase_width": 0, "firstphase_height": 0},
        **{"hr_scale": 2.0, "prompt": "p", "styles": [], "seed": -1, "subseed": -1, "subseed_strength": 0},
        **{"seed_resize_from_h": -1, "seed_resize_from_w": -1, "batch_size": 1, "n_iter": 1, "steps": 3},
        **{"cfg_scale": 7, "width": 64, "height": 64, "restore_faces": False, "tiling": False},
        **{"negative_prompt": "", "eta": 0, "s_churn": 0, "s_tmax": 0, "s_tmin": 0, "s_noise": 1},
        **{"sampler_index": "Euler a", "override_settings": {}, "script_name": None, "script_args": []},
    },
}


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_what_front_ends_send_is_understood(name: str, fresh: Served) -> None:
    """The model is chosen beforehand, as Open WebUI and SillyTavern do."""
    assert post(fresh, "options", {"sd_model_checkpoint": "artist"}).json() is None
    answer = post(fresh, "txt2img", FRONT_ENDS[name])
    (picture,) = pictures(answer)
    wishes = FRONT_ENDS[name]
    assert picture.size == (wishes["width"], wishes["height"])
    info = json.loads(answer.json()["info"])
    assert {"prompt", "seed", "width", "height", "infotexts", "all_seeds", "steps"} <= info.keys()
    assert info["infotexts"][0].split("\n").pop().startswith(f"Steps: {wishes['steps']}, Sampler: Euler")
    assert asked(fresh).steps == wishes["steps"]


def test_what_had_no_effect_is_told(served: Served) -> None:
    """A sampler that was ignored in silence would be a puzzle."""
    body = {"prompt": "p", "sampler_name": "DDIM", "denoising_strength": 0.5, "eta": None} | ARTIST
    without = json.loads(post(served, "txt2img", body).json()["info"])["without_effect"]
    assert without.keys() == {"sampler_name", "denoising_strength"}
    same = json.loads(post(served, "txt2img", body | {"sampler_name": "Euler"}).json()["info"])
    assert same["without_effect"].keys() == {"denoising_strength"}


def test_strength_is_left_out_for_models_without(fresh: Served) -> None:
    """Front ends send it with every call; the answer says that it had no effect."""
    body = {"prompt": "p", "init_images": [text(png())], "denoising_strength": 0.4}
    answer = post(fresh, "img2img", body)
    assert asked(fresh).strength is None
    assert "takes no strength" in json.loads(answer.json()["info"])["without_effect"]["denoising_strength"]


def test_pictures_are_batch_size_times_n_iter(served: Served) -> None:
    """Each with the next seed, also past the largest one."""
    body = {"prompt": "p", "batch_size": 2, "n_iter": 2, "seed": 2**63 - 2, "width": 64, "height": 64}
    answer = post(served, "txt2img", body | ARTIST)
    assert len(pictures(answer)) == 4
    assert json.loads(answer.json()["info"])["all_seeds"] == [2**63 - 2, 2**63 - 1, 0, 1]


def test_a_chosen_model_is_its_choosers_alone(keyed: Served) -> None:
    """On the web UI the choice is everybody's; here callers share a server and not a checkpoint."""
    post(keyed, "options", {"sd_model_checkpoint": "org/painter"}, key="b")
    post(keyed, "options", {"sd_model_checkpoint": "ARTIST"}, key="a")
    seen = [get(keyed, "options", key)["sd_model_checkpoint"] for key in ("a", "b", "c")]
    assert seen == ["artist", "painter", "painter"]
    assert post(keyed, "txt2img", {"prompt": "p"}, key="a").status == 200
    refused = post(keyed, "txt2img", {"prompt": "p"}, key="b")
    assert (refused.status, "painter can edit" in refused.json()["detail"]) == (422, True)


class Calls:
    """Calls in threads, each with its answer; all have reached the painter when ``start`` returns."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._threads: dict[str, threading.Thread] = {}
        self._answers: dict[str, Answer] = {}

    def start(self, key: str, **fields: Any) -> None:
        def call() -> None:
            self._answers[key] = post(self._served, "txt2img", {"prompt": "p"} | ARTIST | fields, key)

        self._threads[key] = threading.Thread(target=call)
        self._threads[key].start()
        for _ in range(fields.get("batch_size", 1)):
            asked(self._served)

    def answer(self, key: str) -> Answer:
        self._threads[key].join(10)
        return self._answers[key]


def test_an_interrupt_ends_the_callers_jobs_alone(keyed: Served) -> None:
    """All rows of the caller's, and nothing of the neighbour's."""
    calls = Calls(keyed)
    keyed.painter.shut()
    calls.start("a", batch_size=2)
    calls.start("b")
    assert [get(keyed, "progress", key)["state"]["job_count"] for key in ("a", "b", "c")] == [2, 1, 0]
    assert post(keyed, "interrupt", None, key="a").json() == {}
    refused = calls.answer("a")
    assert (refused.status, refused.json()["code"]) == (499, "cancelled")
    assert len({keyed.painter.cancelled.get(timeout=5) for _ in range(2)}) == 2
    assert get(keyed, "progress", "a")["state"]["job_count"] == 0
    assert get(keyed, "progress", "b")["state"]["job_count"] == 1
    keyed.painter.open()
    assert calls.answer("b").status == 200
    assert keyed.painter.cancelled.empty()


PICTURE = text(png())

REFUSED_BODIES: dict[str, tuple[dict[str, Any], int, str]] = {
    "no prompt": ({"prompt": None}, 422, "prompt"),
    "blank prompt": ({"prompt": " "}, 422, "prompt"),
    "no picture": ({"init_images": []}, 422, "init_images"),
    "broken picture": ({"init_images": ["%" + SECRET]}, 422, "init_images.0"),
    "four pictures": ({"init_images": [PICTURE] * 4}, 422, "init_images"),
    "picture is a number": ({"init_images": [1]}, 422, "init_images.0"),
    "bomb": ({"init_images": [bomb(50_000)]}, 413, "init_images.0"),
    "inner address": ({"init_images": ["http://127.0.0.1/x"]}, 422, "init_images.0"),
    "file url": ({"init_images": ["file:///etc/passwd"]}, 422, "init_images.0"),
    "mask of another size": ({"mask": text(png(8, 8)), **ARTIST}, 422, "mask"),
    "mask of a model without": ({"mask": MASK}, 422, "mask"),
    "strength over one": ({"denoising_strength": 1.5, **ARTIST}, 422, "denoising_strength"),
    "strength of nothing": ({"denoising_strength": 0, **ARTIST}, 422, "denoising_strength"),
    "many steps": ({"steps": 10**6}, 422, "steps"),
    "huge cfg": ({"cfg_scale": 1e30}, 422, "cfg_scale"),
    "huge width": ({"width": 2**40}, 422, "width"),
    "negative seed": ({"seed": -5}, 422, "seed"),
    "text as steps": ({"steps": "8"}, 422, "steps"),
    "many pictures": ({"batch_size": 16, "n_iter": 16}, 422, "batch_size"),
    "no pictures": ({"n_iter": 0}, 422, "n_iter"),
    "too many at once": ({"batch_size": 10**9}, 422, "batch_size"),
    "nothing to send": ({"send_images": False}, 422, "send_images"),
    "misspelt": ({"cfgscale": 7}, 422, ""),
    "secret as name": ({SECRET: 1}, 422, ""),
    "secret as setting": ({"override_settings": {SECRET: 1}}, 422, "override_settings"),
    "secret as model": ({"override_settings": {"sd_model_checkpoint": SECRET}}, 404, "model"),
    "model is a list": ({"override_settings": {"sd_model_checkpoint": [1]}}, 422, "sd_model_checkpoint"),
    "settings are a list": ({"override_settings": [1]}, 422, "override_settings"),
    **{f"{name} switched on": ({name: [1]}, 422, name) for name in sorted(REFUSED)},
}


@pytest.mark.parametrize("name", REFUSED_BODIES)
def test_what_cannot_be_done_is_refused_by_name(name: str, guarded: Served) -> None:
    """With nothing of the caller's own words in the refusal."""
    fields, status, param = REFUSED_BODIES[name]
    answer = post(guarded, "img2img", {"prompt": "p", "init_images": [PICTURE]} | fields)
    assert (answer.status, answer.json().get("param", "")) == (status, param), answer.body
    assert answer.json()["detail"] == answer.json()["error"]
    check_refusal(answer)
    assert guarded.painter.entered.empty()


@pytest.mark.parametrize("path", ["txt2img", "img2img", "options"])
@pytest.mark.parametrize("name", BODIES)
def test_bodies_of_another_dialect_do_no_harm(name: str, path: str, guarded: Served) -> None:
    """What breaks a reader of JSON breaks all of them."""
    answer = guarded.client.request("POST", f"/sdapi/v1/{path}", BODIES[name][0])
    if (name, path) == ("no input", "options"):  # {}: no wish, and no fault
        assert answer.json() is None
        return
    assert 400 <= answer.status < 500, answer.body
    check_refusal(answer)


def test_no_field_is_in_two_tables() -> None:
    """A field that were ignored and refused would be whichever is asked first."""
    assert not IGNORED.keys() & REFUSED
