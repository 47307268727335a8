"""Command lines as the older servers' documents print them, run by the real curl."""

import re
import subprocess
from pathlib import Path

PRINTED = Path(__file__).parent / "printed"


def printed(name: str, port: int, *, folder: Path) -> str:
    """What the line answers when ``localhost:PORT`` in it is a server of ours. Fails on an error of curl.

    It is run in ``folder``, where the files lie that it names.
    """
    line, found = re.subn(r"localhost:\d+", f"127.0.0.1:{port}", (PRINTED / f"{name}.sh").read_text())
    assert found == 1
    line = line.replace("/path/to/your/", "")
    done = subprocess.run(["bash", "-ec", line], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout
