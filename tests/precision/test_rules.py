"""Who decides: the order of the contract, how rules match, and what is said when they do not."""

from __future__ import annotations

import itertools

import onnx_ir as ir
import pytest

from halfconv.errors import UsageError
from halfconv.graph.names import Names
from halfconv.graph.typegroups import TypeGroups
from halfconv.precision.constants import constant_ranges, weight_stats
from halfconv.precision.planner import Assignment, Verdict, assign
from halfconv.precision.rules import SCOPE_KEYS, Decision, Rules, Strength, decisions
from tests.graph import group, grouped

FP16 = ir.DataType.FLOAT16
CHAIN = "(float[2,4] x) => (float[2,4] y) { [a] a = Tanh(x)\n [b] b = Exp(a)\n [c] y = Tanh(b) }"
NESTED = (
    "(float[2,4] x, bool c) => (float[2,4] y) { [pre] a = Tanh(x)\n p = Tanh(a)\n p2 = Relu(p)\n"
    " y = If(c) <then_branch = g () => (float[2,4] t) { [inner] s = Tanh(p2)\n t = Tanh(s) },"
    " else_branch = h () => (float[2,4] e) { [inner] e = Relu(p2) }> }"
)


def decide(graph: str, rules: Rules, **options: object) -> tuple[Names, TypeGroups, Assignment]:
    """Plan a model as the pipeline does."""
    made, names, groups = grouped(graph, **options)
    decided = list(decisions(names, rules))
    for match in constant_ranges(names, groups, weight_stats(names, groups, FP16), FP16):
        decided += [
            Decision(node, False, Strength.MEASURED, match.why, "constant-range", match.culprit, match.figures)
            for node in match.nodes
        ]
    return names, groups, assign(made, names, groups, decided, frozenset(), frozenset())


def verdict(graph: str, value: str, **rules: object) -> tuple[bool, Verdict | None, list[str]]:
    names, groups, assignment = decide(graph, Rules(**rules))  # type: ignore[arg-type]
    number = group(names, groups, value)
    return assignment.half[number], assignment.verdicts.get(number), assignment.overruled


def matched(graph: str, metadata: dict[str, dict[str, str]] | None = None, **rules: object) -> set[str]:
    """Ids of the nodes that the user's rules name."""
    _, names, _ = grouped(graph)
    for node, known in names.node.items():
        node.metadata_props.update((metadata or {}).get(known, {}))
    found = decisions(names, Rules(block_list="none", **rules))  # type: ignore[arg-type]
    return {names.node[decision.node] for decision in found}


def complaint(graph: str, **rules: object) -> str:
    with pytest.raises(UsageError) as caught:
        matched(graph, **rules)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- strongest first ------------------------------------------------------------------------------------------------


DECIDERS = [s for s in Strength if s not in (Strength.IMPOSSIBLE, Strength.MIN_CUT)]


def test_the_order_is_the_contracts() -> None:
    assert [s.name for s in sorted(Strength)] == [
        "IMPOSSIBLE", "USER_BLOCK", "USER_ALLOW", "MEASURED", "REPAIR", "BLOCK_LIST", "MIN_CUT",
    ]  # fmt: skip


@pytest.mark.parametrize("strong,weak", list(itertools.combinations(DECIDERS, 2)), ids=lambda s: s.name)
@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_the_stronger_decides_whatever_comes_first(strong: Strength, weak: Strength, swapped: bool, half: bool) -> None:
    made, names, groups = grouped(CHAIN)
    node = next(n for n in names.node if names.node[n] == "b")
    said = [
        Decision(node, half, strong, "strong words", "strong", node),
        Decision(node, not half, weak, "weak words", "weak", node),
    ]
    found = assign(made, names, groups, reversed(said) if swapped else said, frozenset(), frozenset())
    number = group(names, groups, "b")
    assert found.half[number] is half
    assert (found.verdicts[number].rule, found.verdicts[number].strength) == ("strong", strong)


@pytest.mark.parametrize("weak", DECIDERS, ids=lambda s: s.name)
def test_the_impossible_beats_everybody(weak: Strength) -> None:
    graph = "(float[2,4] x) => (float[2,4] y) { [r] a = RandomNormal <shape = [2, 4]> ()\n y = Add(a, x) }"
    made, names, groups = grouped(graph)
    node = next(n for n in names.node if names.node[n] == "r")
    found = assign(made, names, groups, [Decision(node, True, weak, "weak", "weak", node)], frozenset(), frozenset())
    number = group(names, groups, "a")
    assert not found.half[number]
    assert (found.verdicts[number].rule, found.verdicts[number].strength) == ("kernel", Strength.IMPOSSIBLE)


def test_an_impossible_node_keeps_that_reason_when_the_user_blocks_it_too() -> None:
    graph = "(float[2,4] x) => (float[2,4] y) { a = RandomNormal <shape = [2, 4]> ()\n y = Add(a, x) }"
    _, why, _ = verdict(graph, "a", block_ops=("RandomNormal",))
    assert why is not None and why.rule == "kernel"


def test_the_users_block_beats_the_users_allow() -> None:
    half, why, _ = verdict(CHAIN, "a", block_ops=("Tanh",), allow_nodes=("a",))
    assert not half and why is not None and (why.rule, why.node) == ("user-block", "a")


def test_the_users_block_is_the_reason_where_the_block_list_agrees() -> None:
    _, why, _ = verdict(CHAIN, "b", block_nodes=("b",))
    assert why is not None and why.rule == "user-block" and "--block-node b" in why.reason


WEIGHT = (
    "(float[2,4] x) => (float[2,4] y) <float[4] w = {1, 2, 3, 70000}> { [a] a = Tanh(x)\n [m] b = Mul(a, w)\n [c] y = Tanh(b) }"
)


def test_the_users_allow_beats_what_was_measured_and_the_warning_says_the_figure() -> None:
    half, why, _ = verdict(WEIGHT, "b")
    assert not half and why is not None and why.rule == "constant-range"
    half, _, overruled = verdict(WEIGHT, "b", allow_ops=("Mul",))
    assert half
    assert len(overruled) == 1 and "--allow-op Mul" in overruled[0] and "70000" in overruled[0] and "'m'" in overruled[0]


def test_the_users_block_beats_what_was_measured() -> None:
    _, why, _ = verdict(WEIGHT, "b", block_nodes=("m",))
    assert why is not None and why.rule == "user-block"


def test_the_users_allow_beats_the_block_list_with_a_warning() -> None:
    half, _, overruled = verdict(CHAIN, "b", allow_ops=("Exp",))
    assert half
    assert len(overruled) == 1 and "Exp" in overruled[0]


def test_an_allow_rule_that_beats_nobody_gives_no_warning() -> None:
    half, _, overruled = verdict(CHAIN, "a", allow_nodes=("a",))
    assert half and not overruled


def test_what_was_measured_is_the_reason_where_the_block_list_agrees() -> None:
    graph = (
        "(float[2,4] x) => (float[2,4] y) <float[4] w = {1, 2, 3, 70000}> { a = Tanh(x)\n b = Mod <fmod = 1> (a, w)\n y = Tanh(b) }"
    )
    _, why, _ = verdict(graph, "b")
    assert why is not None and why.rule == "constant-range"


def test_the_block_list_beats_the_min_cut() -> None:
    half, why, _ = verdict(CHAIN, "b")
    assert not half and why is not None and why.rule == "block-list:Exp"


def test_the_min_cut_leaves_a_neutral_operator_between_fp32_neighbours() -> None:
    graph = "(float[2,4] x) => (float[2,4] y) { a = Exp(x)\n b = Relu(a)\n c = Exp(b)\n y = Tanh(c) }"
    half, why, _ = verdict(graph, "b")
    assert not half and why is None
    half, _, _ = verdict(graph, "b", allow_ops=("Relu",))
    assert half, "unless the user allows it"


def test_the_models_border_beats_the_user() -> None:
    names, groups, assignment = decide(CHAIN, Rules(allow_ops=("Tanh",)))
    assert not assignment.half[group(names, groups, "x")]


# --- how rules match ------------------------------------------------------------------------------------------------


def test_an_operator_rule_matches_in_every_scope() -> None:
    found = matched(NESTED, block_ops=("Relu",))
    assert found == {"Relu#2", "If#3.else_branch/inner"}


@pytest.mark.parametrize("spelled", ["Tanh", "ai.onnx::Tanh"])
def test_an_operator_may_be_named_with_its_domain(spelled: str) -> None:
    assert matched(CHAIN, block_ops=(spelled,)) == {"a", "c"}


def test_a_contrib_operator_may_be_named_with_its_domain() -> None:
    graph = "(float[2,4] x) => (float[2,4] y) { [g] a = com.microsoft.Gelu(x)\n y = Tanh(a) }"
    for spelled in ("Gelu", "com.microsoft::Gelu"):
        _, names, _ = grouped(graph, imports=', "com.microsoft" : 1')
        found = decisions(names, Rules(block_list="none", block_ops=(spelled,)))
        assert {names.node[d.node] for d in found} == {"g"}


@pytest.mark.parametrize(
    "expression,want",
    [
        ("a", {"a"}),
        ("[ab]", {"a", "b"}),
        (".*", {"a", "b", "c"}),
        ("a|c", {"a", "c"}),
    ],
)
def test_a_node_rule_matches_the_whole_id(expression: str, want: set[str]) -> None:
    assert matched(CHAIN, block_nodes=(expression,)) == want


@pytest.mark.parametrize("expression", ["", "A", "^b.", "a$b", "aa"])
def test_a_part_of_an_id_is_no_match(expression: str) -> None:
    assert "matches no node id" in complaint(CHAIN, block_nodes=(expression,))


@pytest.mark.parametrize(
    "expression,want",
    [
        (r"Tanh#1", {"Tanh#1"}),
        (r"Relu#\d", {"Relu#2"}),
        (r"If#3\.then_branch/inner", {"If#3.then_branch/inner"}),
        (r".*/inner", {"If#3.then_branch/inner", "If#3.else_branch/inner"}),
        (r"If#3\.then_branch/Tanh#1", {"If#3.then_branch/Tanh#1"}),
        (r"If#3", {"If#3", "If#3.then_branch/inner", "If#3.then_branch/Tanh#1", "If#3.else_branch/inner"}),
    ],
)
def test_ids_of_unnamed_and_inner_nodes(expression: str, want: set[str]) -> None:
    """A blocked node that holds graphs blocks all in them."""
    assert matched(NESTED, block_nodes=(expression,)) == want


def test_an_allowed_if_does_not_allow_what_is_inside() -> None:
    assert matched(NESTED, allow_ops=("If",)) == {"If#3"}


SCOPES = (
    '(float[2,4] x) => (float[2,4] y) { ["/a/b/c/Tanh"] a = Tanh(x)\n ["/a/b"] b = Tanh(a)\n ["/a/bc/Tanh"] c = Tanh(b)\n'
    ' ["/a/b.0/Tanh"] d = Tanh(c)\n ["x/a/b/Tanh"] y = Tanh(d) }'
)


@pytest.mark.parametrize("prefix", ["/a/b", "a/b", "/a/b/", "/a/b."])
def test_a_scope_ends_at_a_border(prefix: str) -> None:
    assert matched(SCOPES, block_scopes=(prefix,)) == {"/a/b/c/Tanh", "/a/b", "/a/b.0/Tanh"}


@pytest.mark.parametrize("prefix", ["/a/b/c/Tan", "b/c", "/", "", "."])
def test_a_scope_is_a_whole_prefix(prefix: str) -> None:
    assert "--block-scope" in complaint(SCOPES, block_scopes=(prefix,))


@pytest.mark.parametrize("part", ["b", "/b", "Tanh", "c"])
def test_a_part_in_the_middle_of_a_scope_is_no_prefix(part: str) -> None:
    assert "--block-scope" in complaint(SCOPES, block_scopes=(part,))


def test_a_scope_reaches_into_subgraphs() -> None:
    assert matched(NESTED, block_scopes=("If#3.then_branch",)) == {"If#3.then_branch/inner", "If#3.then_branch/Tanh#1"}


EXPORTED = {"n1": {SCOPE_KEYS[0]: "['', 'encoder', 'encoder.layer.0', 'tanh']"}}
TWO = "(float[2,4] x) => (float[2,4] y) { [n1] a = Tanh(x)\n [n2] y = Tanh(a) }"


@pytest.mark.parametrize("prefix", ["encoder", "encoder.layer.0"])
def test_the_exporters_scope_counts_as_well(prefix: str) -> None:
    assert matched(TWO, EXPORTED, block_scopes=(prefix,)) == {"n1"}


@pytest.mark.parametrize("prefix", ["encoder.layer.01", "layer", "enc", "decoder"])
def test_the_exporters_scope_has_borders_as_well(prefix: str) -> None:
    with pytest.raises(UsageError):
        matched(TWO, EXPORTED, block_scopes=(prefix,))


def test_a_dotted_prefix_of_the_exporters_scope() -> None:
    assert matched(TWO, EXPORTED, block_scopes=("encoder.layer",)) == {"n1"}


def test_the_exporters_namespace() -> None:
    """Torch's dynamo exporter writes 'module: class' for each level."""
    metadata = {"n1": {SCOPE_KEYS[1]: ": bert.Model/encoder: bert.Encoder/encoder.layer.0: bert.Layer/tanh: aten.tanh.default"}}
    assert matched(TWO, metadata, block_scopes=("encoder",)) == {"n1"}


# --- what is said when nothing matches -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rules,option,near",
    [
        ({"block_ops": ("Tahn",)}, "--block-op 'Tahn'", "Tanh"),
        ({"block_ops": ("tanh",)}, "--block-op 'tanh'", "Tanh"),
        ({"allow_ops": ("Exq",)}, "--allow-op 'Exq'", "Exp"),
        ({"block_nodes": (r"If#3\.then/inner",)}, "--block-node", "If#3.then_branch/inner"),
        ({"allow_nodes": ("prer",)}, "--allow-node 'prer'", "pre"),
        ({"block_scopes": ("If#3.then_brunch",)}, "--block-scope", "If#3.then_branch"),
    ],
)
def test_a_rule_that_matches_nothing_names_near_misses(rules: dict[str, tuple[str, ...]], option: str, near: str) -> None:
    graph = NESTED if "Exq" not in str(rules) else CHAIN
    said = complaint(graph, **rules)
    assert option in said and "try:" in said and near in said.split("try:")[1]


def test_one_rule_of_several_that_matches_nothing_is_still_an_error() -> None:
    assert "'Selu'" in complaint(CHAIN, block_ops=("Tanh", "Selu"))


@pytest.mark.parametrize("option", ["block_nodes", "allow_nodes"])
def test_a_malformed_expression_is_named(option: str) -> None:
    said = complaint(CHAIN, **{option: ("a(",)})
    assert f"--{option[:-1].replace('_', '-')}" in said and "regular expression" in said


def test_unknown_patterns_and_lists_are_named() -> None:
    assert "softmax-attention" in complaint(CHAIN, block_patterns=("softmax-atention",))
    with pytest.raises(UsageError, match="onnxconverter-common"):
        Rules(block_list="onnxconverter").check()


def test_a_pattern_that_is_nowhere_in_the_model_is_an_error() -> None:
    assert "matches nothing" in complaint(CHAIN, block_patterns=("norm",))


# --- block lists ----------------------------------------------------------------------------------------------------


def test_without_a_block_list_nothing_is_decided() -> None:
    _, names, _ = grouped(CHAIN)
    assert not list(decisions(names, Rules(block_list="none")))


def test_onnxconverter_commons_own_list() -> None:
    from onnxconverter_common import float16

    graph = (
        "(float[2,4] x) => (float[2,4] y) { [a] a = Tanh(x)\n [e] b = Exp(a)\n [m] c = Max(b, a)\n [c] y = CumSum(c, k) }".replace(
            "=> (float[2,4] y) {", "=> (float[2,4] y) <int64 k = {0}> {"
        )
    )
    _, names, _ = grouped(graph)
    found = {names.node[d.node]: d for d in decisions(names, Rules(block_list="onnxconverter-common"))}
    want = {known for node, known in names.node.items() if node.op_type in float16.DEFAULT_OP_BLOCK_LIST}
    assert set(found) == want == {"m", "c"}
    assert all("onnxconverter-common" in d.reason and d.strength == Strength.BLOCK_LIST for d in found.values())


def test_the_default_list_gives_a_why_for_each_operator() -> None:
    _, names, _ = grouped(CHAIN)
    found = list(decisions(names, Rules()))
    assert [(names.node[d.node], d.rule) for d in found] == [("b", "block-list:Exp")]
    assert "11.09" in found[0].reason


def test_only_rules_that_differ_from_the_defaults_are_written_down() -> None:
    assert Rules().to_dict() == {}
    assert Rules(block_ops=("Exp",), block_list="none").to_dict() == {"block_ops": ["Exp"], "block_list": "none"}
