"""The options that several commands share, so that they are spelled, checked and explained alike."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnx_attnq.inputs import InputShapes, MadeUp
    from onnx_attnq.progress import Progress
    from onnx_attnq.run import RunSettings
    from onnx_attnq.scheme import QuantScheme

path_type = click.Path(path_type=Path)
"""A file or a folder, which shells complete."""


class SchemeType(click.ParamType["QuantScheme | str"]):
    """NAME, or NAME:bits=N,threshold=T,pruned=mean; checked here, and read by `scheme_of`."""

    name = "scheme"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """As help shows it."""
        return "NAME[:bits=N,threshold=T,pruned=mean]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text, once it has been found to be a scheme."""
        from onnx_attnq.errors import InvalidScheme
        from onnx_attnq.scheme import parse_scheme

        try:
            parse_scheme(value)
        except InvalidScheme as error:
            self.fail(str(error), param, ctx)
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The names that begin so."""
        from onnx_attnq.scheme import PRESETS

        return [CompletionItem(name) for name in PRESETS if name.startswith(incomplete)]


def scheme_of(text: str | None, bits: int | None, threshold: float | None) -> QuantScheme:
    """The scheme that --scheme, --bits and --threshold ask for together."""
    from onnx_attnq.scheme import PRESETS, parse_scheme

    return parse_scheme(text or PRESETS[0], bits=bits, threshold=threshold)


data_option = click.option(
    "--data",
    type=path_type,
    help="Samples to run the models on: an .npz or .npy file, a folder of them, or a folder with test_data_set_* "
    "folders.  [default: made-up samples]",
)
weights_option = click.option(
    "--weights",
    type=click.Choice(["int8", "int4"]),
    help="Quantize the weights, too, by onnxruntime's quantizers: int8 with activations quantized when the model runs, "
    "or int4 in blocks of 32.  [default: leave the weights as they are]",
)
samples_option = click.option(
    "--samples",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    metavar="COUNT",
    help="Number of samples to make up where --data is not given.",
)
seed_option = click.option("--seed", type=int, default=0, show_default=True, help="Random seed for made-up samples.")


class InputShapeType(click.ParamType["tuple[str, tuple[int, ...]]"]):
    """NAME=1,128."""

    name = "shape"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """As help shows it."""
        return "NAME=1,128"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The name and the sizes."""
        from onnx_attnq.errors import InvalidData
        from onnx_attnq.inputs import parse_input_shape

        try:
            return parse_input_shape(value)
        except InvalidData as error:
            self.fail(str(error), param, ctx)


def _shapes_by_name(ctx: click.Context, _: click.Parameter, shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> Any:
    by_name = dict(shapes)
    if len(by_name) < len(shapes):
        names = [name for name, _ in shapes]
        twice = next(name for name in names if names.count(name) > 1)
        raise click.BadParameter(f"input {twice!r} was given two shapes; give one", ctx, param_hint="--input-shape")
    return by_name


input_shape_option = click.option(
    "--input-shape",
    "input_shapes",
    type=InputShapeType(),
    multiple=True,
    callback=_shapes_by_name,
    help="Shape of an input of made-up samples, in elements; inputs with the same symbols follow; may be repeated.  "
    "[default: chosen for each sample]",
)
custom_ops_option = click.option(
    "--custom-ops",
    type=path_type,
    multiple=True,
    metavar="LIBRARY",
    help="A library of custom ops that the models need; may be repeated.",
)


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--threads, --custom-ops, --memory and --time-limit, which reach the command as ``run``."""

    @functools.wraps(command)
    def with_settings(
        *, threads: int | None, custom_ops: tuple[Path, ...], memory: int, time_limit: float | None, **others: Any
    ) -> Any:
        from onnx_attnq.run import RunSettings

        return command(run=RunSettings(threads, custom_ops, memory * 2**20, time_limit), **others)

    options = (
        click.option(
            "--threads",
            type=click.IntRange(1),
            metavar="COUNT",
            help="Number of threads that onnxruntime uses inside an op.  [default: one for each core]",
        ),
        custom_ops_option,
        click.option(
            "--memory",
            type=click.IntRange(1),
            metavar="MB",
            default=256,
            show_default=True,
            help="Memory for values inside of a model that one run may return, in units of 2^20 bytes.",
        ),
        click.option(
            "--time-limit",
            type=click.FloatRange(0.0, min_open=True),
            metavar="SECONDS",
            help="Longest that one run of a model may take; a longer one ends the command with an error.  "
            "[default: no limit]",
        ),
    )
    return functools.reduce(lambda decorated, option: option(decorated), reversed(options), with_settings)


LIMIT_HELP: Final = (
    "Bound on a figure of one output or all: cosine>=, top1_agreement>=, relative_error<=, max_abs<=, mean_abs<=, "
    "median_abs<=, p90_abs<=, p99_abs<=, p999_abs<=, kl<=; may be repeated."
)


def limits_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--atol, --rtol and --metric, which reach the command as ``limits``."""

    @functools.wraps(command)
    def with_limits(*, atol: float | None, rtol: float | None, metrics: tuple[str, ...], **others: Any) -> Any:
        from onnx_attnq.verification import Limit, Limits

        return command(limits=Limits(tuple(Limit.parse(text) for text in metrics), rtol, atol), **others)

    options = (
        click.option(
            "--atol",
            type=click.FloatRange(0.0),
            help="Largest absolute difference that an element of an output may have.  [default: 1e-5 where no other "
            "bound is given]",
        ),
        click.option(
            "--rtol",
            type=click.FloatRange(0.0),
            help="Largest difference that an element of an output may have, relative to that of A.  [default: 1e-4 "
            "where no other bound is given]",
        ),
        click.option("--metric", "metrics", multiple=True, metavar="[OUTPUT:]FIGURE>=VALUE", help=LIMIT_HELP),
    )
    return functools.reduce(lambda decorated, option: option(decorated), reversed(options), with_limits)


max_length_option = click.option(
    "--max-length",
    type=click.IntRange(8),
    default=320,
    show_default=True,
    metavar="TOKENS",
    help="Longest input of the model for a task, in tokens; longer texts are cut into windows that overlap.",
)
json_option = click.option(
    "--json",
    "json_path",
    type=click.Path(allow_dash=True),
    metavar="PATH",
    help="Write the result as JSON to a file; - writes it to standard output, in place of the text.",
)
metadata_option = click.option("--metadata", is_flag=True, help="Include the IR version and metadata_props.")
exclude_option = click.option(
    "--exclude",
    multiple=True,
    metavar="GLOB",
    help="Leave out sites whose id matches; may be repeated.  [default: none]",
)
external_data_option = click.option(
    "--external-data",
    type=click.Choice(["copy", "keep"]),
    default="copy",
    show_default=True,
    help="External weights: copy them to OUTPUT.data, or refer to MODEL's files, in their folder.",
)
no_report_option = click.option(
    "--no-report", is_flag=True, help="Write the numbers only, which needs neither matplotlib nor jinja2."
)
scheme_option = click.option(
    "--scheme",
    type=SchemeType(),
    help="How attention probabilities are quantized: a preset, and its bits and threshold where they are not the "
    "preset's own.  [default: row-log-mean]",
)
bits_option = click.option(
    "--bits",
    type=int,
    metavar="COUNT",
    help="Bits for each probability, 1 to 8; the same as --scheme NAME:bits=N.  [default: the scheme's]",
)
threshold_option = click.option(
    "--threshold",
    type=float,
    help="Probabilities below this, 0 to 1, are pruned: absolute, or relative to the row's maximum, as in the scheme; "
    "the same as --scheme NAME:threshold=T.  [default: the scheme's]",
)


def refuse_shapes_of_data(data: Path | None, input_shapes: InputShapes) -> None:
    """An option that would be ignored is an error."""
    if data is not None and input_shapes:
        raise click.UsageError("--input-shape is for made-up samples; it does not go with --data")


def samples_for(
    model: ir.Model,
    data: Path | None,
    count: int,
    seed: int,
    input_shapes: InputShapes,
    run: RunSettings,
    progress: Progress,
    *,
    edges: bool = False,
) -> MadeUp:
    """What --data, --samples, --seed and --input-shape ask for: samples from files, or made up."""
    from onnx_attnq.inputs import MadeUp, load_samples, made_up_samples

    refuse_shapes_of_data(data, input_shapes)
    if data is not None:
        return MadeUp(load_samples(data, model))
    return made_up_samples(model, count, seed, edges=edges, input_shapes=input_shapes, run=run, progress=progress)
