"""The command line: ``--help`` with every setting, ``--check``, ``--test_input``; the SDK keeps its own."""

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
    serving:    neither a check nor a test: take jobs or serve HTTP.
    """

    check: bool = False
    test_input: str | None = None
    for_sdk: bool = False

    @property
    def serving(self) -> bool:
        return not self.check and self.test_input is None


def parse(arguments: Sequence[str], settings: Iterable[tuple[str, str, str]]) -> Command:
    """Raises ``SystemExit``: 0 after ``--help``, 2 for what is not understood.

    settings: (variable, default, description) of each.
    """
    parser = argparse.ArgumentParser(
        prog="python handler.py",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Makes and edits images. On RunPod it takes jobs; with STANDALONE_MODE=1 it serves HTTP; "
        "elsewhere it runs one test job. `edit`, `generate`, `models` and `jobs` are commands of their own: "
        "`python handler.py edit --help`.",
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


def table(settings: Iterable[tuple[str, str, str]], width: int = 100) -> str:
    """One entry a setting, wrapped to ``width`` characters."""
    entries = []
    for variable, default, description in settings:
        text = description + (f" [{default}]" if default and default not in description else "")
        lines = textwrap.wrap(text, width - 28) or [""]
        entries.append(f"  {variable:<25} {lines[0]}")
        entries += [" " * 28 + line for line in lines[1:]]
    return "\n".join(entries)
