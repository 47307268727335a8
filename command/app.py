"""``edit``, ``generate``, ``models`` and ``jobs``: what they take and what they print.

A picture's place goes to standard output, for scripts; everything else to standard error.
"""

from collections.abc import Sequence
from typing import Any

import click

from command import files, here, jobs, listing
from command.display import shown
from command.failure import INTERRUPTED, STATUSES, WRONG, Failure, named
from command.options import of_pictures, of_server
from command.server import Server
from command.wishes import Wishes

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


def run(arguments: Sequence[str]) -> int:
    """The exit status."""
    try:
        status = commands.main(list(arguments), prog_name="python handler.py", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except click.ClickException as error:
        error.show()
        return error.status if isinstance(error, Failure) else error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        return INTERRUPTED


@click.group(context_settings=_CONTEXT, epilog=STATUSES)
def commands() -> None:
    """Make and edit pictures, here or on a server."""


@commands.command(context_settings=_CONTEXT, epilog=STATUSES)
@click.argument("words", nargs=-1, metavar="PICTURE... PROMPT")
@click.option("--strength", type=float, help="part of the picture that is redrawn, over 0 to 1")
@click.option("--mask", metavar="PICTURE", help="white is painted anew, black is kept")
@of_pictures
def edit(
    words: tuple[str, ...], url: str | None, api_key: str | None, output: str | None, **wishes: Any
) -> None:
    """Change a picture as PROMPT says.

    PICTURE is a file, an http(s) address, or - for standard input; further ones are references.

    Without --url the model of DEFAULT_MODEL is loaded here; DEFAULT_MODEL=pocket-edit needs no GPU.
    """
    if len(words) < 2:
        raise Failure('edit needs a picture and a prompt: edit in.png "make it night"', WRONG)
    _make(Wishes(prompt=words[-1], pictures=words[:-1], **wishes), url, api_key, output)


@commands.command(context_settings=_CONTEXT, epilog=STATUSES)
@click.argument("prompt")
@of_pictures
def generate(prompt: str, url: str | None, api_key: str | None, output: str | None, **wishes: Any) -> None:
    """Make a picture of PROMPT.

    Without --url the model of --model or DEFAULT_MODEL is loaded here; --model pocket-sdxl needs no GPU.
    """
    _make(Wishes(prompt=prompt, **wishes), url, api_key, output)


def _make(wishes: Wishes, url: str | None, api_key: str | None, output: str | None) -> None:
    files.check(output)
    job_input = wishes.job_input(output)
    try:
        with shown() as display:
            maker = Server(url, api_key).picture if url else here.picture
            made = maker(job_input, display)
    except Failure as failure:
        raise named(failure, wishes.pictures) from None
    stem = files.stem_of(wishes.prompt, wishes.pictures)
    place = files.save(made.data, output, stem, job_input["output_format"])
    click.echo(f"{place}: {made.sentence}", err=True)
    if output != "-":
        click.echo(place)


@commands.command(context_settings=_CONTEXT, epilog=STATUSES)
@of_server
def models(url: str | None, api_key: str | None) -> None:
    """List the models that can be asked for; * marks the default."""
    for line in listing.of_server(Server(url, api_key)) if url else here.models():
        click.echo(line)


commands.add_command(jobs.jobs)
