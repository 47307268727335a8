"""The command line: ``--help`` with every setting, ``--check``, ``--test_input``, ``download``.

Options of the SDK are left to it.
"""

import argparse
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from serverless.local import DEFAULT_INPUT

# Options of the runpod SDK that reach it through sys.argv; ``--test_input`` is ours.
_SDK_PREFIX = "--rp_"

# What ``command.app`` reads, with options of its own.
SUBCOMMANDS = frozenset({"edit", "generate", "models", "jobs"})


@dataclass(frozen=True, slots=True)
class Command:
    """What was asked for.

    test_input: a file's name or inline JSON.
    for_sdk:    options of the SDK's own were given.
    models:     names of those to download, or with ``verify`` to read again.
    serving:    none of these: take jobs or serve HTTP.
    """

    check: bool = False
    models: tuple[str, ...] = ()
    verify: bool = False
    test_input: str | None = None
    for_sdk: bool = False

    @property
    def serving(self) -> bool:
        return not self.check and not self.models and self.test_input is None


def parse(arguments: Sequence[str], settings: Iterable[tuple[str, str, str]]) -> Command:
    """Raises ``SystemExit``: 0 after ``--help``, 2 for what is not understood.

    settings: (variable, default, description) of each.
    """
    if arguments[:1] == ["download"]:
        return _parse_download(arguments[1:])
    parser = argparse.ArgumentParser(
        prog="python handler.py",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Makes, edits and looks at pictures. On RunPod it takes jobs; with STANDALONE_MODE=1 it "
        "serves HTTP; elsewhere it runs one test job. `download MODEL…` fetches models ahead; `edit`, "
        "`generate`, `models` and `jobs` are commands of their own: `python handler.py edit --help`.",
        epilog=f"settings (environment variables, also read from .env):\n\n{table(settings)}",
    )
    parser.add_argument(
        "--check", action="store_true", help="look for what would not work here and say how to mend it"
    )
    parser.add_argument(
        "--test_input",
        nargs="?",
        const=DEFAULT_INPUT,
        metavar="FILE|JSON",
        help=f"run one job and save its pictures to OUTPUT_DIR (default job: {DEFAULT_INPUT})",
    )
    for_sdk = any(argument.startswith(_SDK_PREFIX) for argument in arguments)
    known = parser.parse_known_args(arguments)[0] if for_sdk else parser.parse_args(arguments)
    return Command(check=known.check, test_input=known.test_input, for_sdk=for_sdk)


def _parse_download(arguments: Sequence[str]) -> Command:
    parser = argparse.ArgumentParser(
        prog="python handler.py download",
        allow_abbrev=False,
        description="Fetches models into HF_HOME, for an image or a volume, and checks every file against "
        "the hub's checksums. What was interrupted goes on where it stopped.",
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="registry name, hub id or alias")
    parser.add_argument(
        "--verify", action="store_true", help="fetch nothing; read what is there again and compare"
    )
    known = parser.parse_args(arguments)
    return Command(models=tuple(known.models), verify=known.verify)


def table(settings: Iterable[tuple[str, str, str]], width: int = 100) -> str:
    """One entry a setting, wrapped to ``width`` characters."""
    entries = []
    for variable, default, description in settings:
        text = description + (f" [{default}]" if default and default not in description else "")
        lines = textwrap.wrap(text, width - 28) or [""]
        entries.append(f"  {variable:<25} {lines[0]}")
        entries += [" " * 28 + line for line in lines[1:]]
    return "\n".join(entries)
