"""The one exception type for faults in what the user gave, and how a command line reports it."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(Exception):
    """A fault in the user's files or options: one line that names the place and the remedy."""


class Interrupted(UserError):
    """Work was cut short through no fault in what was given; what is done is kept, and the same
    command goes on from there."""


def run_command(main: Callable[[], None]) -> None:
    """Runs a command line's `main`; a `UserError`, or a file that the system refuses, becomes one
    line on stderr and exit status 1.

    Anything else is a fault of ours and keeps its traceback.
    """
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"error: {place}{error.strerror or error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)
