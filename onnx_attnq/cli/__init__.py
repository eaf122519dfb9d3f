"""The command line: the only part of the package that prints or exits.

Exit codes: 0 done; 1 the verification failed, or models differ; 2 bad usage or input; 3 nothing to rewrite.
"""

from __future__ import annotations

import sys
from typing import Any

import click

from onnx_attnq.cli.analyze import analyze
from onnx_attnq.cli.bench import bench
from onnx_attnq.cli.bisect import bisect
from onnx_attnq.cli.canonical import canonical
from onnx_attnq.cli.compress import compress
from onnx_attnq.cli.diff import diff
from onnx_attnq.cli.evaluate import evaluate
from onnx_attnq.cli.export import export
from onnx_attnq.cli.fingerprint import fingerprint
from onnx_attnq.cli.inspect import inspect
from onnx_attnq.cli.revert import revert
from onnx_attnq.cli.verify import verify
from onnx_attnq.errors import AttnqError
from onnx_attnq.version import __version__


class _DefaultGroup(click.Group):
    """A group in which anything that is not a command is the model of `compress`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {option for parameter in self.get_params(ctx) for option in parameter.opts}
        if args and args[0] not in self.commands and args[0] not in own:
            args = ["compress", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_DefaultGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="onnx-attnq %(version)s")
def cli() -> None:
    """Prune and log-quantize the attention probabilities of an ONNX transformer.

    `onnx-attnq MODEL` is short for `onnx-attnq compress MODEL`: it finds the attention, rewrites it, proves the
    result in onnxruntime, and writes MODEL.attnq.onnx beside the model.

    Exit codes: 0 done; 1 the verification failed, or models differ; 2 bad usage or input; 3 nothing to rewrite.
    """


_COMMANDS = (compress, inspect, bench, analyze, evaluate, export, verify, bisect, revert, diff, canonical, fingerprint)

for command in _COMMANDS:
    cli.add_command(command)


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line and exit; the entry point of the ``onnx-attnq`` script."""
    try:
        code = cli.main(arguments, prog_name="onnx-attnq", standalone_mode=False)
    except AttnqError as error:
        click.echo(f"onnx-attnq: error: {error}", err=True)
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = 2
    except (KeyboardInterrupt, click.Abort):
        click.echo("onnx-attnq: interrupted", err=True)
        code = 130
    sys.exit(code)
