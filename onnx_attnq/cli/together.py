"""Options that do not go together: one that would be ignored is an error."""

from __future__ import annotations

import click


def refuse_beside(reason: str, *options: str) -> None:
    """Refuse options of the command that is running.

    Args:
        reason: Why they would be ignored.
        options: Their long names; one that has its default is not refused.

    Raises:
        UsageError: One of them was given.
    """
    ctx = click.get_current_context()
    parameters = {name: parameter for parameter in ctx.command.params for name in parameter.opts}
    for option in options:
        parameter = parameters[option]
        value = ctx.params[parameter.name or ""]
        if value is not None and value is not False and value not in ((), {}) and value != parameter.default:
            said = f"{option} {value}" if isinstance(parameter.type, click.Choice) else option
            raise click.UsageError(f"{reason}; it does not go with {said}")


__all__ = ["refuse_beside"]
