"""What ends a command: a sentence for the person who typed it, and a status for the script around it."""

from typing import Final

import click

from core.errors import CapacityError, RequestError, ServingError

FAILED, WRONG, LATER, INTERRUPTED = 1, 2, 3, 130

STATUSES: Final = (
    "exit status: 0 done; 1 the work failed; 2 something in the command is wrong; "
    "3 nobody answers or there is no room: try again later; 130 interrupted"
)

# A server's fields, as the options that set them.
_OPTIONS: Final = {
    "num_inference_steps": "--steps",
    "true_cfg_scale": "--cfg",
    "width": "--size",
    "height": "--size",
    "loras": "--lora",
    "model": "--model",
    "seed": "--seed",
    "strength": "--strength",
    "mask": "--mask",
    "negative_prompt": "--negative",
}


class Failure(click.ClickException):
    """status: one of those above. code, param: the server's, where it was one that refused."""

    def __init__(self, sentence: str, status: int, *, code: str = "", param: str = "") -> None:
        super().__init__(sentence)
        self.status = status
        self.code = code
        self.param = param


def of(error: ServingError) -> Failure:
    status = WRONG if isinstance(error, RequestError) else LATER if _passes(error) else FAILED
    return Failure(error.message, status, code=error.code, param=error.param or "")


def named(failure: Failure, pictures: tuple[str, ...]) -> Failure:
    """The same, with the picture or the option at fault in front of the sentence."""
    field, _, rest = failure.param.partition(".")
    if field == "image_url" and not pictures:
        sentence = "that server's model only edits pictures; choose one that makes them with --model"
        return Failure(sentence, failure.status, code=failure.code, param=failure.param)
    if field == "images" and rest.isdecimal() and int(rest) < len(pictures):
        place = pictures[int(rest)]
    else:
        place = _OPTIONS.get(field, "")
    if not place:
        return failure
    sentence = f"{place}: {failure.message}"
    return Failure(sentence, failure.status, code=failure.code, param=failure.param)


def _passes(error: ServingError) -> bool:
    return isinstance(error, CapacityError) and error.retryable
