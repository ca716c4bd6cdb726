"""The command line: parse, call, print.

Exit codes: 0 done, 2 yours to mend, 1 ours, or that nobody reads the output any more; 130 after
Ctrl-C, 143 after SIGTERM.
"""

from __future__ import annotations

import errno
import io
import os
import sys
import traceback

__all__ = ["main"]

# What the system refuses and only its user can mend.
_YOURS = frozenset(
    {
        errno.EACCES,
        errno.EDQUOT,
        errno.ENAMETOOLONG,
        errno.ENOSPC,
        errno.EPERM,
        errno.EROFS,
    }
)


def main() -> None:
    """Run ``limbeck``; the only place that turns errors into messages and exit codes."""
    from limbeck.cli.app import app
    from limbeck.core.errors import LimbeckError

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # its encoding may lack what a name is made of
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # here a closed pipe can still be answered
    except LimbeckError as error:
        _complain(f"error: {error}")
        sys.exit(2)
    except KeyboardInterrupt:
        _complain("interrupted")
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output went away: nobody is there to be told
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  (Python flushes it when it ends)
        sys.exit(1)
    except Exception as error:  # noqa: BLE001  (the border of the program)
        sys.exit(_answer(error))
    except BaseException as error:
        signum = getattr(error, "signum", None)  # an InterruptedRun, whose module needs torch
        if signum is None:
            raise
        _complain(str(error))
        sys.exit(128 + signum)


def _answer(error: Exception) -> int:
    """Say what happened, and whose it is to mend: the exit code."""
    if isinstance(error, OSError) and error.errno in _YOURS:
        _complain(f"error: {error}; give a place that can be written and has room, and try again")
        return 2
    # torch's own class is not imported here, since that would import torch.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        _complain(
            f"error: out of memory: {error}\nlower --batch-size (raise --grad-accum-steps to "
            "match), or use --amp or a smaller network"
        )
        return 2
    traceback.print_exception(error)
    _complain("internal error: please report the lines above with `limbeck doctor`'s output")
    return 1


def _complain(message: str) -> None:
    from limbeck.cli.terminal import printable_lines

    print(printable_lines(message), file=sys.stderr)  # noqa: T201
