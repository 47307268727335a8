"""The asynchronous jobs of a server: list, show, cancel."""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode

import click

from command.failure import FAILED, WRONG, Failure
from command.options import of_server
from command.server import Server

_LONGEST = 200  # characters of a value that is shown; pictures are megabytes


@click.group()
def jobs() -> None:
    """Look after the asynchronous jobs of a server."""


@jobs.command("list")
@click.option("--limit", type=click.IntRange(1, 1000), help="most to show")
@click.option("--after", metavar="ID", help="go on behind this one")
@of_server
def list_jobs(url: str | None, api_key: str | None, limit: int | None, after: str | None) -> None:
    """One line for each job: id, state, when it was made."""
    query = urlencode({name: value for name, value in (("limit", limit), ("after", after)) if value})
    page = _told(lambda: _server(url, api_key).get(f"/jobs?{query}" if query else "/jobs"), None)
    for line in _lines(page):
        click.echo(line)
    if isinstance(page, dict) and isinstance(page.get("after"), str):
        click.echo(f"there are more: --after {page['after']}", err=True)


@jobs.command()
@click.argument("job_id", metavar="ID")
@of_server
def show(url: str | None, api_key: str | None, job_id: str) -> None:
    """All that is known of a job, as JSON; pictures are left out."""
    page = _told(lambda: _server(url, api_key).get(f"/jobs/{quote(job_id, safe='')}"), job_id)
    click.echo(json.dumps(_short(page), indent=2, ensure_ascii=False))


@jobs.command()
@click.argument("job_id", metavar="ID")
@of_server
def cancel(url: str | None, api_key: str | None, job_id: str) -> None:
    """End a job before it is done."""
    page = _told(lambda: _server(url, api_key).delete(f"/jobs/{quote(job_id, safe='')}"), job_id)
    told = page if isinstance(page, dict) else {}
    # A job that has ended stays as it is, and only its state tells.
    click.echo(told.get("message") or f"{job_id}: {told.get('state', 'cancelled')}")


def _server(url: str | None, api_key: str | None) -> Server:
    if not url:
        raise Failure("jobs are kept by a server: say which with --url http://host:8000", WRONG)
    return Server(url, api_key)


def _told(ask: Any, job_id: str | None) -> Any:
    """A server without jobs and one without this job both answer 404, in different words."""
    try:
        return ask()
    except Failure as failure:
        if failure.code in ("not_found", "method_not_allowed"):
            raise Failure(
                "this server keeps no jobs; edit and generate with --url work on it", WRONG
            ) from None
        if failure.code == "job_not_found" or (job_id and failure.code == "404"):
            raise Failure(f"no job {job_id} there; it may have been too long ago", WRONG) from None
        raise


def _lines(page: Any) -> Iterator[str]:
    rows = page.get("jobs", page) if isinstance(page, dict) else page
    if isinstance(rows, dict):  # keyed by id
        rows = list(rows.values())
    if not isinstance(rows, list):
        raise Failure("the server's list of jobs is in no form known here", FAILED)
    for row in rows:
        if isinstance(row, dict):
            state = row.get("state") or row.get("status")
            shown = (row.get("id") or row.get("job_id"), state, row.get("created_at"))
            yield "  ".join("-" if value is None else str(value) for value in shown)


def _short(value: Any) -> Any:
    if isinstance(value, str) and len(value) > _LONGEST:
        return f"({len(value)} characters)"
    if isinstance(value, dict):
        return {name: _short(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_short(each) for each in value]
    return value
