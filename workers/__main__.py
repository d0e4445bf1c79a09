"""`python -m workers serve --fd N` and `python -m workers job --fd N`: the two kinds of child process.

The only module of the device side that reads the environment.
"""

import argparse
import os
import sys

from workers.faults import parse_faults
from workers.process import prepare


def main() -> int:
    """Run one child on the socket it inherited. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m workers", description="Child processes of slimserve.")
    parser.add_argument("kind", choices=["serve", "job"])
    parser.add_argument("--fd", type=int, required=True, help="inherited socket to the front end")
    arguments = parser.parse_args()
    faults = parse_faults(os.environ.get("SLIMSERVE_FAULTS", ""))
    # Imported here: each kind needs libraries that take the other seconds to import.
    if arguments.kind == "job":
        from workers import job

        return job.main(arguments.fd)
    # Before the import: it takes seconds, in which the front end may die or want to see the stacks.
    sock = prepare(arguments.fd)
    from workers import serve

    # Whatever a checkpoint says, loading one never reaches for the network.
    os.environ["HF_HUB_OFFLINE"] = "1"
    return serve.main(sock, faults)


if __name__ == "__main__":
    sys.exit(main())
