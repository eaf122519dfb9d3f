"""The command line: the only part of the package that prints or exits.

Exit codes: 0 done; 1 the verification failed, or models differ; 2 bad usage or input; 3 nothing to rewrite; 130
interrupted.

A module of this package imports only click, and what is as light, at its top. What a command works with is imported
when it runs: help and shell completion answer at once.
"""

from __future__ import annotations

import sys
from typing import Any

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells count it: 128 and the number of the signal."""


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line and exit; the entry point of the ``onnx-attnq`` script."""
    try:
        code = _run(arguments)
    except KeyboardInterrupt:  # also while modules are imported
        sys.stderr.write("onnx-attnq: interrupted\n")
        code = INTERRUPTED
    sys.exit(code)


def _run(arguments: list[str] | None) -> Any:
    import click

    from onnx_attnq.cli.group import cli
    from onnx_attnq.errors import AttnqError

    try:
        return cli.main(arguments, prog_name="onnx-attnq", standalone_mode=False)
    except AttnqError as error:
        click.echo(f"onnx-attnq: error: {error}", err=True)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return 2
    except click.Abort:  # click has begun a new line
        raise KeyboardInterrupt from None
