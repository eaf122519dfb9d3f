"""The commands, which are imported when they are used, and the command that runs when none is given."""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from typing import Final

import click
from click.shell_completion import CompletionItem

from onnx_attnq.version import __version__

COMMANDS: Final = {
    "compress": "Rewrite the attention of MODEL and verify the result",
    "inspect": "List the attention of MODEL, and why other softmaxes are none",
    "analyze": "Measure the attention values of MODEL, and the cost of schemes",
    "bench": "Time ORIGINAL and the models REWRITTEN from it, in turn",
    "evaluate": "Measure MODEL and its compressed form on a task",
    "tune": "Choose a scheme for each head of MODEL, and write the plan",
    "sweep": "Try schemes on MODEL; report loss, share pruned and speed",
    "export": "Export MODEL from transformers to ONNX, checked against PyTorch",
    "verify": "Compare what models A and B compute",
    "bisect": "Rank the sites of B by what they add to its deviation from A",
    "revert": "Restore the original graph of a rewritten MODEL",
    "diff": "Show where the graphs of models A and B differ",
    "canonical": "Print MODEL as text that is equal for equal models",
    "fingerprint": "Print a hash of MODEL that is equal for equal models",
}
"""Each command with the first line of its help, which is shown without importing the command."""

DEFAULT: Final = "compress"


class Commands(click.Group):
    """A group of modules in which anything that is not a command is the model of `compress`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import the command of a name."""
        if name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(f"onnx_attnq.cli.{name}"), name)
        assert isinstance(command, click.Command)
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the default command in front of a model or an option."""
        own = {option for parameter in self.get_params(ctx) for option in parameter.opts}
        if args and args[0] not in COMMANDS and args[0] not in own:
            if not ctx.resilient_parsing:
                _refuse_mistyped(args[0])
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with their whole summaries."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Commands that begin so; else files, for the model of the default command."""
        found = [CompletionItem(name, help=text) for name, text in COMMANDS.items() if name.startswith(incomplete)]
        return found or [CompletionItem(incomplete, type="file")]


def _refuse_mistyped(word: str) -> None:
    """Raises for a word that is neither an option nor a file, but almost a command."""
    if word.startswith("-") or Path(word).exists():
        return
    if word == "help":
        raise click.UsageError("'help' is no command; write `onnx-attnq --help`, or `onnx-attnq COMMAND --help`")
    near = difflib.get_close_matches(word, COMMANDS, 1, cutoff=0.7)
    if near:
        raise click.UsageError(f"{word!r} is neither a command nor a file; did you mean `onnx-attnq {near[0]}`?")


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, message="onnx-attnq %(version)s")
def cli() -> None:
    """Prune and log-quantize the attention probabilities of an ONNX transformer.

    `onnx-attnq MODEL` is short for `onnx-attnq compress MODEL`: it finds the attention, rewrites it, verifies the
    result in onnxruntime, and writes MODEL.attnq.onnx beside the model.

    Exit codes: 0 done; 1 the verification failed, or models differ; 2 bad usage or input; 3 nothing to rewrite;
    70 a fault of the program; 130 interrupted.
    """
