"""How this command was started, so that what it tells its user to type next can be pasted."""

import shlex
import shutil
import sys
from pathlib import Path


def own_command() -> str:
    """The command that runs now, quoted for a shell: its bare name where the PATH leads to it, else its path."""
    started_as = Path(sys.argv[0])
    if started_as.name == "__main__.py":
        return shlex.join([sys.executable, "-m", started_as.parent.name])
    found = shutil.which(started_as.name)
    if found is not None and Path(found).resolve() == started_as.resolve():
        return shlex.quote(started_as.name)
    return shlex.quote(str(started_as))
