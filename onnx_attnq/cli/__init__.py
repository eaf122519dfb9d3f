"""The command line: the only part of the package that prints or exits.

Exit codes: 0 done; 1 the verification failed, or models differ; 2 bad usage or input; 3 nothing to rewrite; 70 a fault
of the program; 128 and the number of the signal that ended it, such as 130 for Ctrl-C.

A module of this package imports only click, and what is as light, at its top. What a command works with is imported
when it runs: help and shell completion answer at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from click import ClickException

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells count it: 128 and the number of the signal."""

FAULT = 70
"""Exit code for a fault of the program, EX_SOFTWARE of sysexits.h."""

_GRAPH_COMMANDS = frozenset({"canonical", "diff", "fingerprint", "revert"})
"""Commands that run no model and import nothing else that could need sympy."""


class _Terminated(BaseException):
    """A signal that ends the program, as an exception: so that temporary files are removed on the way."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line and exit; the entry point of the ``onnx-attnq`` script."""
    try:
        _fill_closed_streams()
        from onnx_attnq.interruption import stopping_runs

        # Of numpy, which is not imported yet: products of the proof are small, and threads wait longer than they work.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        with _ending_cleanly() as received, stopping_runs():
            _escape_unprintable()
            code = _run(arguments, received)
    except KeyboardInterrupt:  # also while modules are imported
        _say("interrupted")
        code = INTERRUPTED
    except _Terminated as ended:
        _say("terminated")
        code = ended.exit_code
    sys.exit(code)


def _run(arguments: list[str] | None, received: Sequence[BaseException]) -> Any:
    import click

    from onnx_attnq.cli.command import BROKEN_PIPE
    from onnx_attnq.cli.group import cli
    from onnx_attnq.deferred import defer_sympy
    from onnx_attnq.errors import AttnqError

    given = sys.argv[1:] if arguments is None else arguments
    if given and given[0] in _GRAPH_COMMANDS:
        defer_sympy()
    debug = "--debug" in given
    try:
        code = cli.main(arguments, prog_name="onnx-attnq", standalone_mode=False)
        sys.stdout.flush()
        return code
    except getattr(click.exceptions, "NoArgsIsHelpError", ()) as error:  # of click 8.2
        error.show()
        return 2
    except click.ClickException as error:
        _say(f"error: {_usage(error)}")
        return 2
    except click.Abort:  # click has begun a new line
        raise KeyboardInterrupt from None
    except Exception as error:
        if received:  # extension modules that a signal stops while they are imported make an ImportError of it
            raise received[0] from None
        if debug and not isinstance(error, BrokenPipeError):
            import traceback

            traceback.print_exception(error)
        match error:
            case AttnqError():
                _say(f"error: {error}")
                return error.exit_code
            case BrokenPipeError():
                _give_up_output()
                return BROKEN_PIPE
            case OSError():
                if error.filename is None:
                    _give_up_output()
                _say(f"error: {error.filename or 'standard output'}: {error.strerror or error}")
                return 2
            case MemoryError():
                _say("error: there is not enough memory")
                return 2
        from onnx_attnq.version import ISSUES

        what = f"{type(error).__name__}: {error}"[:300]
        hint = "" if debug else " with what --debug prints"
        _say(f"this is a fault of the program: {what}; please report it{hint} at {ISSUES}")
        return FAULT


def _usage(error: ClickException) -> str:
    """What is wrong with the words of the command line, and where to look it up."""
    import click

    message = " ".join(error.format_message().split()).removesuffix(".")
    if not isinstance(error, click.UsageError) or error.ctx is None or "`" in message:  # it says what to write
        return message
    return f"{message}; `{error.ctx.command_path} --help` lists what there is"


def _say(text: str) -> None:
    """A line on standard error, whatever the text holds and whether or not anyone can read it."""
    from onnx_attnq.one_line import one_line

    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"onnx-attnq: {one_line(text)}\n")
        sys.stderr.flush()


def _give_up_output() -> None:
    """Close standard output for good; otherwise Python tries to flush it at exit, and prints an error."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _fill_closed_streams() -> None:
    """Streams that the caller has closed lead nowhere: the next file that is opened would take the place of one."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")


def _escape_unprintable() -> None:
    """Names that the terminal's encoding does not have are shown escaped."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def _ending_cleanly() -> Iterator[Sequence[BaseException]]:
    """Signals that end a program become exceptions, which it yields as they come.

    A program that was told to ignore a signal (nohup) still does.
    """
    received: list[BaseException] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    before = {number: signal.getsignal(number) for name in names if (number := getattr(signal, name, None))}

    def end(number: int, frame: object) -> NoReturn:
        received.append(KeyboardInterrupt() if number == signal.SIGINT else _Terminated(number))
        raise received[-1]

    for number, handler in before.items():
        if handler in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, end)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
