"""Options that several commands share, and the values that are written in a way of their own."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from api.images import IMAGE_FORMATS

F = TypeVar("F", bound=Callable[..., Any])


class SizeType(click.ParamType[tuple[int, int]]):
    name = "WxH"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        width, cross, height = str(value).lower().partition("x")
        if not (cross and width.isdecimal() and height.isdecimal() and len(value) < 20):
            self.fail(f"{value!r} is no size; write width x height in pixels, as in 768x512", param, ctx)
        return int(width), int(height)


class LoraType(click.ParamType[tuple[str, float | None]]):
    name = "ID[:SCALE]"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, float | None]:
        name, _, scale = str(value).partition(":")
        try:
            return name, float(scale) if scale else None
        except ValueError:
            self.fail(f"{scale!r} is no scale; write id:scale, as in comic:0.8", param, ctx)


def of_server(command: F) -> F:
    for add in (
        click.option("--api-key", envvar="API_KEY", show_envvar=True, help="key for --url"),
        click.option("--url", metavar="URL", help="address of a server, as http://host:8000"),
    ):
        command = add(command)
    return command


def of_pictures(command: F) -> F:
    options = (
        click.option("--model", metavar="NAME", help="see `models`  [default: DEFAULT_MODEL]"),
        click.option("--steps", type=int, help="denoising steps"),
        click.option("--seed", type=int, help="the same seed repeats the picture"),
        click.option("--cfg", type=float, help="guidance; 1 means unguided"),
        click.option("--size", metavar="WxH", type=SizeType(), help="of the result, in pixels"),
        click.option("--lora", "loras", type=LoraType(), multiple=True, help="may be given several times"),
        click.option("--negative", metavar="TEXT", help="what guidance steers away from"),
        click.option("--format", "image_format", type=click.Choice(IMAGE_FORMATS), help="else by --output"),
        click.option(
            "-o",
            "--output",
            metavar="FILE",
            help="- is standard output  [default: a new file named after the input]",
        ),
    )
    for add in reversed(options):
        command = add(command)
    return of_server(command)
