"""What nobody friendly sends, as a table over real HTTP: none answers 500 and none looks inside."""

import io
import json
import struct
import zlib

import pytest
from PIL import Image as Pillow

from api.errors import STATUS
from tests.api.remote import Canary
from tests.api.serving import INSIDE, Answer, Served, png, text

SECRET = "hunter2-0451"
PICTURE = text(png())
MEBIBYTE = 2**20


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bomb(side: int, content: bytes = b"") -> str:
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return text(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b""))


def eps() -> str:
    out = io.BytesIO()
    Pillow.new("RGB", (8, 8)).save(out, "EPS")
    return text(out.getvalue())


def wish(**fields: object) -> bytes:
    return json.dumps({"input": {"prompt": "p", "image_base64": PICTURE, **fields}}).encode()


def raw(fields: str) -> bytes:
    """Fields as they are written, for what no JSON writer would write."""
    return f'{{"input": {{"prompt": "p", "image_base64": "{PICTURE}", {fields}}}}}'.encode()


BODIES = {
    "nothing": (b"", 400),
    "text": (b"hello", 400),
    "half": (wish()[:-10], 400),
    "null": (b"null", 422),
    "list": (b"[]", 422),
    "no input": (b"{}", 422),
    "input is text": (b'{"input": "x"}', 422),
    "input is null": (b'{"input": null}', 422),
    "latin-1": ('{"input": {"prompt": "é"}}'.encode("latin-1"), 400),
    "utf-16": ('{"input": {"prompt": "x"}}'.encode("utf-16"), 400),
    "zero bytes": (bytes(1000), 400),
    "nan": (raw('"true_cfg_scale": NaN'), 400),
    "minus infinity": (raw('"true_cfg_scale": -Infinity'), 400),
    "1e400": (raw('"true_cfg_scale": 1e400'), 400),
    "1e308": (raw('"true_cfg_scale": 1e308'), 422),
    "huge integer": (raw('"seed": ' + "9" * 400), 400),
    "large integer": (raw('"seed": 99999999999999999999'), 422),
    "negative width": (raw('"width": -8'), 422),
    "lone surrogate": (raw('"negative_prompt": "\\ud800"'), 400),
    "surrogates reversed": (raw('"negative_prompt": "\\udc00\\ud800"'), 400),
    "control character": (raw('"negative_prompt": "\x01"'), 400),
    "duplicate key": (raw('"seed": 1, "seed": 2'), 400),
    "duplicate input": (b'{"input": {}, "input": {}}', 400),
    "deep list": (b"[" * 500_000, 400),
    "deep object": (b'{"input":' * 100_000, 400),
    "deep field": (raw('"images": ' + "[" * 900 + "]" * 900), 422),
    "a million numbers": (b'{"input": [' + b"1," * 900_000 + b"1]}", 400),
    "true as number": (wish(seed=True), 422),
    "text as number": (wish(num_inference_steps="8"), 422),
    "fraction as number": (wish(width=512.5), 422),
    "list as prompt": (wish(prompt=["p"]), 422),
    "unknown field": (wish(num_inference_step=8), 422),
    "python in a name": (wish(__class__="x"), 422),
    "secret as name": (wish(**{SECRET: 1}), 422),
    "secret in prompt": (wish(prompt=SECRET * 1000), 422),
    "secret as model": (wish(model=SECRET), 404),
    "path as model": (wish(model="../../etc/passwd"), 404),
    "no picture": (b'{"input": {"prompt": "p"}}', 400),
    "many pictures": (wish(image_base64=None, images=[PICTURE] * 50), 422),
    "long prompt": (wish(prompt="x" * 100_000), 422),
    "long name": (b'{"input": {"' + b"x" * 100_000 + b'": 1}}', 400),
    "long base64 with a line break": (
        b'{"input": {"prompt": "p", "image": "' + b"QUJD" * 30_000 + b"\n" + b'"}}',
        422,
    ),
    "many texts of escapes": (
        b'{"input": ["' + b'","'.join([b"\\n" * 30_000] * 30) + b'"]}',
        400,
    ),
    "long text of escapes": (b'{"input": {"prompt": "p", "image": "' + b"\\t" * 90_000 + b'"}}', 422),
    "long text of lone surrogates": (raw('"negative_prompt": "' + "\\ud800" * 20_000 + '"'), 422),
    "long text of other letters": (wish(image_base64="\u00e9" * 60_000), 422),
    "long bytes that are no text": (b'{"input": {"prompt": "p", "image": "' + b"\xff" * 80_000 + b'"}}', 422),
    "not base64": (wish(image_base64="%" + SECRET), 422),
    "base64 of text": (wish(image_base64=text(b"hello " + SECRET.encode())), 422),
    "svg": (wish(image_base64=text(b"<svg xmlns='http://www.w3.org/2000/svg'/>")), 422),
    "eps": (wish(image_base64=eps()), 422),
    "pdf": (wish(image_base64=text(b"%PDF-1.7\n1 0 obj<<>>endobj")), 422),
    "truncated": (wish(image_base64=text(png(200, 200)[:-30])), 422),
    "bomb header": (wish(image_base64=bomb(50_000)), 413),
    "bomb": (wish(image_base64=bomb(50_000, zlib.compress(bytes(10**6)))), 413),
    "over the pixels": (wish(image_base64=bomb(2001)), 413),
    "within the pixels but empty": (wish(image_base64=bomb(2000)), 422),
    "zero by zero": (wish(image_base64=bomb(0)), 422),
    "over the image's bytes": (wish(image_base64="A" * (MEBIBYTE * 3 // 2 + 1)), 413),
    "over the body": (wish(prompt="x" * 2 * MEBIBYTE), 413),
    "text chunk bomb": (
        wish(
            image_base64=text(
                png()[:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(50 * MEBIBYTE), 9)) + png()[33:]
            )
        ),
        422,
    ),
    "long url": (wish(image_base64=None, image_url="http://a.example/" + "a" * 10_000), 422),
    "file url": (wish(image_base64=None, image_url="file:///etc/passwd"), 422),
    "huge width": (wish(width=2**40), 422),
    "tiny width": (wish(width=1), 422),
    "format of its own": (wish(output_format="../x"), 422),
    "endless timeout": (wish(timeout=1e300), 422),
}


def check_refusal(answer: Answer) -> None:
    """Small, in our form, with a known code, and nothing of the caller's or ours in it."""
    assert len(answer.body) <= 4096
    assert answer.json()["code"] in STATUS
    assert answer.headers["x-request-id"]
    assert SECRET.encode() not in answer.body
    assert not INSIDE.search(answer.body), answer.body


@pytest.mark.parametrize("name", BODIES)
def test_a_hostile_body_is_the_callers_fault(name: str, guarded: Served) -> None:
    """And the next request works."""
    body, status = BODIES[name]
    answer = guarded.client.request("POST", "/run", body, {"Content-Type": "application/json"})
    assert answer.status == status, answer.body
    check_refusal(answer)
    assert guarded.painter.entered.empty()
    assert guarded.client.get("/ready").status == 200


def test_a_friendly_body_passes(guarded: Served) -> None:
    """The control: what the table refuses is refused for its fault."""
    assert guarded.client.request("POST", "/run", wish()).status == 200
    guarded.painter.entered.get(timeout=5)


@pytest.mark.parametrize("field", ["image_url", "image_url_2", "image", "images", "image_base64"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0"])
def test_no_field_makes_the_server_look_inside(
    field: str, host: str, guarded: Served, canary: Canary
) -> None:
    """Every field that takes a picture takes a URL."""
    url = f"http://{host}:{canary.port}/{SECRET}"
    fields = {"prompt": "p", field: [url] if field == "images" else url}
    answer = guarded.client.run(fields)
    assert (answer.status, answer.json()["code"]) == (422, "url_not_allowed")
    check_refusal(answer)
    assert not canary.reached


def test_a_compressed_body_is_refused(guarded: Served) -> None:
    """Nothing is unpacked."""
    answer = guarded.client.request("POST", "/run", zlib.compress(wish()), {"Content-Encoding": "gzip"})
    assert answer.status == 415
    check_refusal(answer)
