"""Refuse a graph whose nodes do not fit their operators, before later stages rely on it.

A damaged file can parse and still hold a Cast without input or a Loop whose body takes other values: each such defect is named
here, once, so that no stage has to expect it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

import onnx
import onnx_ir as ir
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from halfconv.errors import InputError, UnsupportedModel
from halfconv.graph.names import subgraphs

__all__ = ["check_functions", "check_names", "check_nodes"]

#: Nodes and values that inlining a model's functions may make.
MAX_NODES = 400_000
#: Names that inlining may have to try until it finds free ones: about 40 seconds.
MAX_TRIES = 250_000_000
#: Attributes of which a Constant holds one.
_CONSTANTS = frozenset(
    {"sparse_value", "value", "value_float", "value_floats", "value_int", "value_ints", "value_string", "value_strings"}
)  # fmt: skip
INLINER = "onnx.inliner.inline_local_functions on it"
ADVICE = "export it again; onnx.checker.check_model names the defect"


@lru_cache(maxsize=2048)
def _schema(domain: str, op_type: str, version: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, version, "" if domain == "ai.onnx" else domain)
    except onnx.defs.SchemaError:
        return None


def check_names(proto: onnx.ModelProto, label: str) -> None:
    """Refuse names and other texts that are none: protobuf hands out bytes that are not UTF-8 as they are.

    Raises:
        InputError: With one of them.
    """
    for text in _texts(proto):
        if not isinstance(text, str):
            raise InputError(f"{label}: the text {bytes(text)!r} is not UTF-8", "export or download it again")


def _texts(proto: onnx.ModelProto) -> Iterator[str | bytes]:
    todo: list[Message] = [proto]
    while todo:
        message = todo.pop()
        if isinstance(message, onnx.TensorProto):  # to list its fields would copy its data
            yield from (message.name, message.doc_string)
            todo += message.external_data
            continue
        for field, value in message.ListFields():
            if field.type == FieldDescriptor.TYPE_STRING:
                yield from [value] if isinstance(value, (str, bytes)) else value
            elif field.type == FieldDescriptor.TYPE_MESSAGE:
                todo += [value] if isinstance(value, Message) else value


def check_functions(model: ir.Model, label: str) -> None:
    """Refuse functions that call themselves, or whose expansion explodes.

    Inlining gives every copy of a name a number of its own and looks for a free one from 2 on, so what it costs grows with the
    square of the number of copies.

    Raises:
        UnsupportedModel: Inlining would not end, or not in reasonable time.
    """
    sizes: dict[ir.OperatorIdentifier, Counter[tuple[str, str]]] = {}
    active: set[ir.OperatorIdentifier] = set()

    def copies(nodes: Iterator[ir.Node]) -> Counter[tuple[str, str]]:
        """Count the names, of nodes and of values, that expanding the calls among some nodes makes."""
        found: Counter[tuple[str, str]] = Counter()
        for node in nodes:
            if node.op_identifier() in model.functions:
                found.update(names_in(node.op_identifier()))
                if found.total() > MAX_NODES:
                    break
        return found

    def names_in(identifier: ir.OperatorIdentifier) -> Counter[tuple[str, str]]:
        if identifier in active:
            raise UnsupportedModel(f"{label}: function {identifier[1]} calls itself", "export it again")
        if identifier not in sizes:
            active.add(identifier)
            body = list(ir.traversal.RecursiveGraphIterator(model.functions[identifier].graph))
            own = Counter(("value", output.name or "") for node in body for output in node.outputs)
            own.update(("node", node.name or "") for node in body)
            sizes[identifier] = own + copies(iter(body))
            active.discard(identifier)
        return sizes[identifier]

    try:
        total = copies(ir.traversal.RecursiveGraphIterator(model.graph))
    except RecursionError:
        raise UnsupportedModel(f"{label}: its functions call each other too deep", INLINER) from None
    tries = sum(count * count // 2 for count in total.values())
    if total.total() > MAX_NODES or tries > MAX_TRIES:
        raise UnsupportedModel(
            f"{label}: its functions expand to {total.total():,} nodes and values or more, too many to inline",
            INLINER,
        )


def check_nodes(model: ir.Model, label: str) -> None:
    """Refuse nodes that do not fit their schemas, and subgraphs that do not fit their nodes.

    Raises:
        InputError: With the node and what is wrong.
    """
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        where = f"{label}: node '{node.name or ''}' ({node.op_type})"
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.UNDEFINED:
                raise InputError(f"{where} has attribute '{attribute.name}' without a type", ADVICE)
        version = model.opset_imports.get(node.domain)
        schema = _schema(node.domain, node.op_type, version) if version is not None else None
        if schema is not None:
            _check_node(node, schema, where)
        if node.op_type == "Constant" and not node.domain and not _CONSTANTS & node.attributes.keys():
            raise InputError(f"{where} holds no value", ADVICE)
        _check_bodies(node, where, version or 1)


def _check_node(node: ir.Node, schema: onnx.defs.OpSchema, where: str) -> None:
    count = len(node.inputs)
    if not schema.min_input <= count <= schema.max_input:
        raise InputError(f"{where} has {count} inputs, its operator takes {schema.min_input} to {schema.max_input}", ADVICE)
    if not schema.min_output <= len(node.outputs) <= schema.max_output:
        raise InputError(f"{where} has {len(node.outputs)} outputs, its operator gives {schema.max_output} at most", ADVICE)
    single = onnx.defs.OpSchema.FormalParameterOption.Single
    for index, formal in enumerate(schema.inputs[:count]):
        if formal.option == single and node.inputs[index] is None:
            raise InputError(f"{where} lacks its input '{formal.name}'", ADVICE)
    for name in node.attributes.keys() - schema.attributes.keys():
        if not name.startswith("__"):  # which onnx's checker and ONNX Runtime let pass
            raise InputError(f"{where} has attribute '{name}', which its operator does not have in this opset", ADVICE)
    for name, formal_attribute in schema.attributes.items():
        attribute = node.attributes.get(name)
        if attribute is None:
            if formal_attribute.required:
                raise InputError(f"{where} lacks its attribute '{name}'", ADVICE)
        elif attribute.type != ir.AttributeType[str(formal_attribute.type).rpartition(".")[2]] and not attribute.is_ref():
            raise InputError(f"{where} has attribute '{name}' of kind {attribute.type.name}", ADVICE)


def _check_bodies(node: ir.Node, where: str, version: int) -> None:
    for attribute, body in subgraphs(node):
        for value in body.outputs:
            if not (value.graph is body and (value.producer() is not None or value.is_graph_input() or value.is_initializer())):
                raise InputError(f"{where}: its {attribute} returns '{value.name}', which it does not compute", ADVICE)
        if node.domain:
            continue  # what it takes and returns is its own business
        takes, gives = len(body.inputs), len(body.outputs)
        if node.op_type == "If":
            fits = gives == len(node.outputs) and takes == 0
        elif node.op_type == "Loop":
            fits = takes == len(node.inputs) and gives == len(node.outputs) + 1
        elif node.op_type == "Scan":
            fits = takes == len(node.inputs) - (1 if version < 9 else 0) and gives == len(node.outputs)
        else:
            continue
        if not fits:
            raise InputError(
                f"{where}: its {attribute} takes {takes} and returns {gives} values, the node has {len(node.inputs)} inputs and "
                f"{len(node.outputs)} outputs",
                ADVICE,
            )
