"""Who decides a node's precision: the user's rules, the block list, patterns and constants, strongest first."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from typing import Any

import onnx_ir as ir

from halfconv.errors import UsageError
from halfconv.graph.names import Names, subgraphs
from halfconv.precision.blocklist import BLOCK_LISTS, block_list
from halfconv.precision.formats import FP16, HalfFormat
from halfconv.precision.patterns import PATTERNS

__all__ = ["Decision", "Rules", "Strength", "decisions", "named"]

#: Metadata in which PyTorch's exporter leaves a node's module path.
SCOPE_KEYS = ("pkg.torch.onnx.name_scopes", "namespace")
#: Domains in which an operator's name means what the block list says of it: ONNX's, and ONNX Runtime's, which quantises.
LISTED_DOMAINS = frozenset({"", "ai.onnx.ml", "com.microsoft"})


class Strength(IntEnum):
    """Who decided, strongest first; the order of the shared contract."""

    IMPOSSIBLE = 1
    USER_BLOCK = 2
    USER_ALLOW = 3
    MEASURED = 4
    REPAIR = 5
    BLOCK_LIST = 6
    MIN_CUT = 7


@dataclass(frozen=True, slots=True)
class Decision:
    """One rule's word on one node.

    Attributes:
        node: The node.
        half: Whether it is to be half.
        strength: Who says so.
        reason: Why, in words.
        rule: The row that decided.
        culprit: The node that caused it.
        figures: Numbers that the reason rests on.
        group: The one type group that it is about; None for all that the node has a slot in.
        inputs: Model inputs whose FP32 numbers it is about; void where all of these become half.
    """

    node: ir.Node
    half: bool
    strength: Strength
    reason: str
    rule: str
    culprit: ir.Node
    figures: Mapping[str, float] = field(default_factory=dict)
    group: int | None = None
    inputs: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Rules:
    """What the user asked for.

    Attributes:
        block_ops: Operators that stay FP32.
        block_nodes: Regular expressions over node ids (whole match).
        block_scopes: Prefixes of node ids or of exporter scopes.
        block_patterns: Names of patterns.
        allow_ops: Operators that are half whatever the block list says.
        allow_nodes: Regular expressions over node ids.
        block_list: ``default``, ``none`` or ``onnxconverter-common``.
    """

    block_ops: tuple[str, ...] = ()
    block_nodes: tuple[str, ...] = ()
    block_scopes: tuple[str, ...] = ()
    block_patterns: tuple[str, ...] = ()
    allow_ops: tuple[str, ...] = ()
    allow_nodes: tuple[str, ...] = ()
    block_list: str = "default"

    def to_dict(self) -> dict[str, Any]:
        """Return the rules that differ from the defaults, as JSON data."""
        default = Rules()
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
            if value != getattr(default, key)
        }

    def check(self) -> None:
        """Refuse what can never match.

        Raises:
            UsageError: A regular expression is malformed, or a name is unknown.
        """
        for option, expressions in (("--block-node", self.block_nodes), ("--allow-node", self.allow_nodes)):
            for expression in expressions:
                try:
                    re.compile(expression)
                except re.error as error:
                    raise UsageError(
                        f"{option} {expression!r}: not a regular expression ({error})",
                        "escape special characters with \\",
                    ) from None
        known = [pattern.name for pattern in PATTERNS]
        for name in self.block_patterns:
            if name not in known:
                raise UsageError(f"--block-pattern {name!r}: no such pattern", _near(name, known))
        if self.block_list not in BLOCK_LISTS:
            raise UsageError(f"--block-list {self.block_list!r}: no such list", _near(self.block_list, BLOCK_LISTS))


def _near(wanted: str, known: Iterable[str]) -> str:
    """Word the advice: the known names nearest to what was asked for."""
    names = sorted(set(known))
    lowered = {name.lower(): name for name in names}
    close = [lowered[match] for match in difflib.get_close_matches(wanted.lower(), list(lowered), 3, 0.5)]
    close += [name for name in names if wanted.lower() in name.lower() and name not in close][: 3 - len(close)]
    shown = close or names[:8]
    more = " …" if not close and len(names) > 8 else ""
    return (" or ".join(shown) if close else "one of " + ", ".join(shown) + more) if shown else "halfconv inspect"


def decisions(names: Names, rules: Rules, to: HalfFormat = FP16) -> Iterator[Decision]:
    """Yield what the user's rules, the block list and the default patterns say.

    Args:
        names: Ids of the model's nodes.
        rules: The user's rules.
        to: The half-precision format.

    Raises:
        UsageError: A rule matches nothing.
    """
    rules.check()
    nodes = list(names.nodes())
    yield from _user(nodes, names, rules, to)
    if rules.block_list != "none":
        why = dict(block_list(rules.block_list, to))
        for node in nodes:
            if node.op_type in why and node.domain in LISTED_DOMAINS:
                reason = f"{node.op_type}: {why[node.op_type]}"
                yield Decision(node, False, Strength.BLOCK_LIST, reason, f"block-list:{node.op_type}", node)
    if rules.block_list == "default":
        for pattern in PATTERNS:
            if pattern.default and to in pattern.formats and pattern.name not in rules.block_patterns:
                for match in pattern.find(nodes, to):
                    for node in match.nodes:
                        yield Decision(node, False, Strength.BLOCK_LIST, match.why, pattern.name, match.culprit, match.figures,
                                       inputs=match.inputs)  # fmt: skip


def _user(nodes: Sequence[ir.Node], names: Names, rules: Rules, to: HalfFormat) -> Iterator[Decision]:
    block, allow = Strength.USER_BLOCK, Strength.USER_ALLOW
    ops = [name for node in nodes for name in _op_names(node)]
    for wanted, strength, option in (
        *((name, block, "--block-op") for name in rules.block_ops),
        *((name, allow, "--allow-op") for name in rules.allow_ops),
    ):
        found = [node for node in nodes if wanted in _op_names(node)]
        if not found:
            raise UsageError(f"{option} {wanted!r} matches no node of the model", _near(wanted, ops))
        yield from _decide(found, strength, f"{option} {wanted}")
    ids = list(names.node.values())
    for expression, strength, option in (
        *((name, block, "--block-node") for name in rules.block_nodes),
        *((name, allow, "--allow-node") for name in rules.allow_nodes),
    ):
        found = [node for node in nodes if re.fullmatch(expression, names.node[node])]
        if not found:
            raise UsageError(f"{option} {expression!r} matches no node id of the model", _near(expression, ids))
        yield from _decide(found, strength, f"{option} {expression}")
    for prefix in rules.block_scopes:
        found = [node for node in nodes if any(_within(scope, prefix) for scope in _scopes(node, names))]
        if not found:
            scopes = {s for node in nodes for scope in _scopes(node, names) for s in _prefixes(scope)}
            raise UsageError(f"--block-scope {prefix!r} matches no node of the model", _near(prefix, scopes))
        yield from _decide(found, block, f"--block-scope {prefix}")
    by_name = {pattern.name: pattern for pattern in PATTERNS}
    for name in rules.block_patterns:
        matches = list(by_name[name].find(nodes, to))
        if not matches:
            present = [p.name for p in PATTERNS if p.name != name and any(True for _ in p.find(nodes, to))]
            raise UsageError(f"--block-pattern {name!r} matches nothing in the model", _near(name, present))
        for match in matches:
            for node in match.nodes:
                yield Decision(node, False, block, f"--block-pattern {name}: {match.why}", "user-block", match.culprit)


def named(names: Names, rules: Rules) -> dict[ir.Node, str]:
    """Return the nodes that the user's rules name, each with the first rule that does; unlike `decisions`, none may match."""
    found: dict[ir.Node, str] = {}
    for node, id_ in names.node.items():
        ops, scopes = _op_names(node), _scopes(node, names) if rules.block_scopes else []
        said = [f"--block-op {op}" for op in rules.block_ops if op in ops]
        said += [f"--allow-op {op}" for op in rules.allow_ops if op in ops]
        said += [f"--block-node {rule}" for rule in rules.block_nodes if re.fullmatch(rule, id_)]
        said += [f"--allow-node {rule}" for rule in rules.allow_nodes if re.fullmatch(rule, id_)]
        said += [f"--block-scope {rule}" for rule in rules.block_scopes if any(_within(scope, rule) for scope in scopes)]
        if said:
            found[node] = said[0]
    nodes = list(names.nodes())
    for pattern in PATTERNS:
        if pattern.name in rules.block_patterns:
            for match in pattern.find(nodes, FP16):
                found |= {node: f"--block-pattern {pattern.name}" for node in match.nodes if node not in found}
    return found


def _decide(found: Sequence[ir.Node], strength: Strength, reason: str) -> Iterator[Decision]:
    half = strength == Strength.USER_ALLOW
    rule = "user-allow" if half else "user-block"
    for node in found:
        yield Decision(node, half, strength, reason, rule, node)
        if not half:
            for inner in _inside(node):
                yield Decision(inner, half, strength, f"{reason}, which holds it", rule, node)


def _inside(node: ir.Node) -> Iterator[ir.Node]:
    for _, graph in subgraphs(node):
        yield from ir.traversal.RecursiveGraphIterator(graph)


def _op_names(node: ir.Node) -> tuple[str, ...]:
    if node.domain in ("", "ai.onnx"):
        return (node.op_type, f"ai.onnx::{node.op_type}")
    return (node.op_type, f"{node.domain}::{node.op_type}")


def _scopes(node: ir.Node, names: Names) -> list[str]:
    """Return a node's id and the module path that its exporter left, a path for each level."""
    found = [names.node[node]]
    levels = node.metadata_props.get(SCOPE_KEYS[0], "")
    if levels.startswith("["):  # a list of full paths: ['', 'encoder', 'encoder.layer.0']
        found += [part.strip(" '\"") for part in levels.strip("[]").split(",") if part.strip(" '\"")]
    for part in node.metadata_props.get(SCOPE_KEYS[1], "").split("/"):  # 'encoder.layer.0: bert.Layer' for each level
        if path := part.partition(":")[0].strip():
            found.append(path)
    return found


def _prefixes(scope: str) -> list[str]:
    """Return the leading parts of a scope, for near misses."""
    ends = [match.start() for match in re.finditer(r"[/.]", scope) if match.start() > 0]
    return [scope[:end] for end in ends[:4]] or [scope]


def _within(scope: str, prefix: str) -> bool:
    """Tell whether a scope is a prefix's or lies below it; borders are ``/`` and ``.``, and a leading ``/`` may be left out."""
    wanted = prefix.strip("/.")
    candidates = (scope,) if prefix.startswith("/") else (scope, scope.lstrip("/"))
    wanted = f"/{wanted}" if prefix.startswith("/") else wanted
    return bool(wanted.strip("/")) and any(
        candidate.startswith(wanted) and candidate[len(wanted) : len(wanted) + 1] in ("", "/", ".") for candidate in candidates
    )
