"""What the record of a rewrite says about undoing it: the form that is written into the model."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from onnx_attnq.reading import check_fields


@dataclasses.dataclass(frozen=True)
class GraphUndo:
    """What changed in one graph.

    Attributes:
        graph: Place of the graph in `Dataflow.graphs` of the changed model.
        inserted: Places of the nodes to remove, in the changed graph.
        removed: Places of the nodes to put back, in the original graph.
        nodes: These nodes, the types of their outputs, and the initializers to put back, a serialized GraphProto.
        inputs: Node's place in the original graph, place of the input, and name of the value that belongs there.
        outputs: Names of the graph's outputs.
        initializers: Names of initializers to remove.
        orphans: Places of the initializers to put back, in the original graph.
    """

    graph: int
    inserted: tuple[int, ...]
    removed: tuple[int, ...]
    nodes: bytes
    inputs: tuple[tuple[int, int, str], ...]
    outputs: tuple[str, ...]
    initializers: tuple[str, ...]
    orphans: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values, bytes in base64."""
        return {**dataclasses.asdict(self), "nodes": base64.b64encode(self.nodes).decode()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GraphUndo:
        """The inverse of `to_json`.

        Raises:
            ValueError: Something is missing, unknown or of the wrong type.
        """
        kinds = {"graph": int, "nodes": str}
        data = {"orphans": [], **data}  # records of version 0.1 have none
        lists = dict.fromkeys(("inserted", "removed", "inputs", "outputs", "initializers", "orphans"), list)
        check_fields(data, "a graph of the undo", kinds | lists)
        return cls(
            graph=data["graph"],
            inserted=_tuple(data["inserted"], int),
            removed=_tuple(data["removed"], int),
            nodes=base64.b64decode(data["nodes"], validate=True),
            inputs=tuple(_row(row, int, int, str) for row in data["inputs"]),
            outputs=_tuple(data["outputs"], str),
            initializers=_tuple(data["initializers"], str),
            orphans=_tuple(data["orphans"], int),
        )


@dataclasses.dataclass(frozen=True)
class Undo:
    """What changed in a model.

    Attributes:
        ir_version: The original's.
        opsets: The original's, version by domain.
        graphs: The graphs that changed.
        added_functions: Domain, name and overload of functions to remove.
        functions: Functions to put back, serialized FunctionProtos.
    """

    ir_version: int
    opsets: Mapping[str, int]
    graphs: tuple[GraphUndo, ...]
    added_functions: tuple[tuple[str, str, str], ...]
    functions: tuple[bytes, ...]

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values, bytes in base64."""
        return {
            "ir_version": self.ir_version,
            "opsets": dict(self.opsets),
            "graphs": [graph.to_json() for graph in self.graphs],
            "added_functions": self.added_functions,
            "functions": [base64.b64encode(function).decode() for function in self.functions],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Undo:
        """The inverse of `to_json`.

        Raises:
            ValueError: Something is missing, unknown or of the wrong type.
        """
        lists = dict.fromkeys(("graphs", "added_functions", "functions"), list)
        check_fields(data, "the undo", {"ir_version": int, "opsets": dict} | lists)
        return cls(
            ir_version=data["ir_version"],
            opsets=dict(zip(data["opsets"], _tuple(data["opsets"].values(), int), strict=True)),
            graphs=tuple(map(GraphUndo.from_json, data["graphs"])),
            added_functions=tuple(_row(row, str, str, str) for row in data["added_functions"]),
            functions=tuple(base64.b64decode(text, validate=True) for text in _tuple(data["functions"], str)),
        )


def _tuple(values: Iterable[Any], kind: type[_T]) -> tuple[_T, ...]:
    result = tuple(values)
    if not all(type(value) is kind for value in result):
        raise ValueError(f"the undo has something else where {kind.__name__} belongs")
    return result


def _row(values: Any, *kinds: type) -> Any:
    """A row of a table, in JSON a list; one value of each kind."""
    if not isinstance(values, list) or [type(value) for value in values] != list(kinds):
        raise ValueError("the undo has a row that is none")
    return tuple(values)


_T = TypeVar("_T")


__all__ = ["GraphUndo", "Undo"]
