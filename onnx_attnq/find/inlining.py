"""Replace calls of functions by their bodies, in time that grows with the number of nodes that come of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from onnx_attnq.errors import InvalidModel
from onnx_attnq.graph import subgraphs
from onnx_attnq.one_line import one_line


def inline_functions(model: ir.Model, criteria: Callable[[ir.Function], bool] | None = None) -> None:
    """Inline the functions that meet the criteria, or all, in place.

    Raises:
        InvalidModel: onnx_ir cannot inline one of them, because its opset is another than the model's for instance.
    """
    try:
        _LinearInlinePass(criteria)(model)
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidModel(f"its functions cannot be inlined: {one_line(str(error))}") from error


class _LinearInlinePass(InlinePass):
    """onnx_ir's pass, which counts up from _2 for each new name; this one goes on where it stopped for the last.

    The names are the same, but a function of two nodes that is called 8000 times takes seconds instead of minutes.
    """

    def _reset(self, model: ir.Model) -> None:
        super()._reset(model)
        self._numbers: dict[tuple[bool, str], int] = {}

    def _instantiate_call(self, node: ir.Node, call_site_id: str) -> tuple[list[ir.Node], list[ir.Value]]:
        used = self._used_node_names, self._used_value_names
        self._used_node_names = self._used_value_names = _Nothing()
        try:
            nodes, values = super()._instantiate_call(node, call_site_id)
        finally:
            self._used_node_names, self._used_value_names = used
        for made in _in_order_of_cloning(nodes):
            made.name = self._unique(made.name or "", self._used_node_names, is_value=False)
            for output in made.outputs:
                output.name = self._unique(output.name or "", self._used_value_names, is_value=True)
        return list(nodes), list(values)

    def _unique(self, name: str, used: set[str], *, is_value: bool) -> str:
        number = self._numbers.get((is_value, name), 1)
        candidate = name if number == 1 else f"{name}_{number}"
        while candidate in used:
            number += 1
            candidate = f"{name}_{number}"
        self._numbers[is_value, name] = number
        used.add(candidate)
        return candidate


class _Nothing(set[str]):
    """The names that are taken, as the copy of a function sees them: none."""

    def add(self, name: str) -> None:
        pass


def _in_order_of_cloning(nodes: Iterable[ir.Node]) -> Iterator[ir.Node]:
    """A node after those in its subgraphs."""
    for node in nodes:
        for _, graph in subgraphs(node):
            yield from _in_order_of_cloning(graph)
        yield node


__all__ = ["inline_functions"]
