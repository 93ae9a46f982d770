"""What the rows of `bench/cuda.py` come to: the best peer of each case, how many times as fast halfconv is, and the tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bench import record
from bench.cuda_prepare import OF_ZOO, PEERS

Row = Mapping[str, Any]
OPTIONS = ("", "+graph", "+graph+nhwc")
OURS = tuple(f"halfconv-default{more}" for more in OPTIONS)
#: halfconv's file without operators of its own.
STANDARD = tuple(f"halfconv-standard{more}" for more in OPTIONS)
#: What is wanted of the rows that are not the zoo's: factor -> its least geometric mean.
WANTED = {"peer": 2.5, "peer_options": 1.4}
#: No case may take more than so many times torch.compile's latency, nor drift more than so many times what was predicted.
MOST_OF_COMPILE, MOST_OF_PREDICTED = 1.15, 1.25
TOLERANCE = 1e-2


def merged(known: Iterable[Row], new: Iterable[Row]) -> list[dict[str, Any]]:
    """Put new rows in the place of those of the same case, batch and contender, whose prediction stays.

    Args:
        known: What a result file has.
        new: Rows just made; several of the same place are one.

    Returns:
        All rows, in the order in which their places first appeared.
    """
    found: dict[tuple[Any, ...], dict[str, Any]] = {_place(row): dict(row) for row in known}
    fresh: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in new:
        fresh.setdefault(_place(row), {}).update(row)
    for place, row in fresh.items():
        if row.keys() <= {*_PLACE, "predicted_rel_l2", "predicted_error"}:
            old = {key: value for key, value in found.get(place, {}).items() if not key.startswith("predicted")}
        else:
            old = {key: value for key, value in found.get(place, {}).items() if key.startswith("predicted")}
        found[place] = {**{key: row[key] for key in _PLACE}, **old, **row}
    return list(found.values())


_PLACE = ("case", "batch", "who")


def _place(row: Row) -> tuple[Any, ...]:
    return tuple(row[key] for key in _PLACE)


def best(rows: Mapping[str, Row], names: Iterable[str]) -> Row | None:
    """Return the fastest of some contenders, whatever its answers; None if none of them ran."""
    return min((rows[name] for name in names if "p50_ms" in rows.get(name, {})), key=lambda row: row["p50_ms"], default=None)


def summary(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return one entry for each case that was timed.

    Its keys: ``case``, ``batch``; rows or None at ``fp32``, ``fp32-tf32``, ``peer`` (the fastest with default options),
    ``peer_options`` (with any), ``peer_right`` (the fastest with any whose drift is within tolerance), ``halfconv-portable``,
    ``halfconv-default``, ``halfconv-standard`` (without kernels of its own, with any options), ``halfconv`` (with its profile;
    else the fastest of the same options as the peers'), ``torch-eager`` and ``torch-compile`` (the fastest kind of attention);
    ``predicted`` and ``gpu``, the drift of halfconv's file in simulation and on the GPU on the same inputs.
    """
    found = []
    for key, batch in dict.fromkeys((row["case"], row["batch"]) for row in rows if "p50_ms" in row):
        at = {row["who"]: row for row in rows if row["case"] == key and row["batch"] == batch}
        entry: dict[str, Any] = {"case": key, "batch": batch}
        for who in ("fp32", "fp32-tf32", "halfconv-portable", "halfconv-default"):
            entry[who] = best(at, [who])
        entry["peer"] = best(at, PEERS)
        everyone = [f"{who}{more}" for who in PEERS for more in OPTIONS]
        entry["peer_options"] = best(at, everyone)
        entry["peer_right"] = best(at, [who for who in everyone if is_right(at.get(who, {}))])
        entry["halfconv-standard"] = best(at, STANDARD)
        entry["halfconv"] = best(at, ["halfconv"]) or best(at, OURS)
        for who in ("torch-eager", "torch-compile"):
            entry[who] = best(at, [who, f"{who}+sdpa", f"{who}+eager"])
        same = [row for row in rows if row["case"] == key and row["who"] == "halfconv"]
        for name, figure in (("predicted", "predicted_rel_l2"), ("gpu", "gpu_rel_l2")):
            entry[name] = next((row[figure] for row in same if row.get(figure) is not None), None)
        found.append(entry)
    return found


def is_right(row: Row) -> bool:
    """Say whether a contender's answers are within tolerance; those with NaN have no drift."""
    return row.get("rel_l2") is not None and row["rel_l2"] <= TOLERANCE


def factors(cases: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, int]]:
    """Return how many times as fast as others halfconv is: who -> geometric mean, and over how many cases.

    Args:
        cases: A summary's entries; those of the zoo do not count.

    Returns:
        ``peer``, ``peer_options`` and ``torch-compile``, as far as there are cases that have both.
    """
    found = {}
    for who in ("peer", "peer_options", "torch-compile"):
        pairs = [(case[who], case["halfconv"]) for case in cases if not case["case"].startswith(OF_ZOO)]
        ratios = [other["p50_ms"] / ours["p50_ms"] for other, ours in pairs if other and ours]
        if ratios:
            found[who] = statistics.geometric_mean(ratios), len(ratios)
    return found


def shortcomings(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say in a sentence each what is not as wanted; cases of the zoo count for drift only."""
    said = []
    means = factors(cases)
    for who, least in WANTED.items():
        if who in means and means[who][0] < least:
            said.append(f"{means[who][0]:.2f} times as fast as the best {who.replace('_', ' with ')}, not {least:g}")
    for case in cases:
        name, ours = named(case), case["halfconv"]
        if ours is None:
            said.append(f"{name}: halfconv's model was not timed")
            continue
        other = case["torch-compile"]
        if other and ours["p50_ms"] > MOST_OF_COMPILE * other["p50_ms"]:
            said.append(f"{name}: {ours['p50_ms'] / other['p50_ms']:.2f} times torch.compile's latency")
        if not is_right(ours):
            said.append(f"{name}: drift {ours['rel_l2']}, tolerance {TOLERANCE:g}")
        if case["gpu"] is not None and case["predicted"] is not None and case["gpu"] > MOST_OF_PREDICTED * case["predicted"]:
            said.append(f"{name}: drift {case['gpu']:.3g} on the GPU, {case['predicted']:.3g} predicted")
    return said


def named(case: Mapping[str, Any]) -> str:
    """Return a case's name."""
    return case["case"] if case["batch"] is None else f"{case['case']}@{case['batch']}"


def show(rows: Sequence[Row]) -> None:
    """Print a line for each case, the geometric means, and what is not as wanted."""
    cases = summary(rows)
    figures = []
    for case in cases:
        row: dict[str, object] = {"case": named(case), "who": case["peer_options"]["who"] if case["peer_options"] else "-"}
        for who in ("fp32", "fp32-tf32", "peer", "peer_options", "halfconv-portable", "halfconv-standard", "halfconv-default",
                    "halfconv", "torch-eager", "torch-compile"):  # fmt: skip
            row[who] = case[who] and case[who]["p50_ms"]
        row["burst"] = case["torch-compile"] and case["torch-compile"]["burst_ms"]
        row["drift"] = case["halfconv"] and case["halfconv"]["rel_l2"]
        figures.append({**row, "gpu": case["gpu"], "predicted": case["predicted"]})
    columns = {
        "FP32": "fp32", "TF32": "fp32-tf32", "peer": "peer", "+options": "peer_options", "portable": "halfconv-portable",
        "standard": "halfconv-standard", "fused": "halfconv-default", "halfconv": "halfconv", "eager": "torch-eager",
        "compile": "torch-compile", "back to back": "burst",
    }  # fmt: skip
    drifts = {"drift": "drift", "GPU": "gpu", "predicted": "predicted"}
    errors = [f"{named(row)}, {row['who']}: {row['error']}" for row in rows if "error" in row]
    record.show(
        figures, {**{name: (key, ".3f") for name, key in columns.items()}, **{name: (key, ".2e") for name, key in drifts.items()}},
        ["median ms; \"tool\" is the fastest peer with any options", *errors],
    )  # fmt: skip
    for who, (mean, count) in factors(cases).items():
        print(f"{mean:.2f} times as fast as {who.replace('_', ' with ')}, geometric mean of {count}")
    for sentence in shortcomings(cases):
        print("not as wanted:", sentence)


def markdown(content: Mapping[str, Any], file: str) -> str:
    """Return the documentation's table of architectures.

    Args:
        content: A result.
        file: What it was read from, as the documentation names it.
    """
    cases = summary(content["rows"])
    lines = _made_up([case for case in cases if not case["case"].startswith(OF_ZOO)])
    means = factors(cases)
    words = {"peer": "as the best peer", "peer_options": "with the peer's best options", "torch-compile": "as `torch.compile`"}
    said = ", ".join(f"{means[who][0]:.2f} {text}" for who, text in words.items() if who in means)
    versions = content["versions"]
    runtime = versions.get("onnxruntime-gpu") or versions.get("onnxruntime")
    lines += [
        "",
        f"(Median ms with inputs and outputs on the GPU; {content['machine']['card']}, onnxruntime-gpu {runtime},",
        f"torch {versions.get('torch', '?').partition('+')[0]}, {content['date'][:10]}; `{file}`.",
        f"Times as fast, geometric means: {said}.)",
    ]
    return "\n".join(lines)


def _made_up(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the table of architectures, whose weights are random."""
    plain = any(case["halfconv-standard"] for case in cases)
    head = (
        "model, batch", "FP32", "TF32", "best peer", "with graph, NHWC", *(["without its kernels"] if plain else []), "halfconv",
        "`torch.compile`", "back to back", "drift: GPU", "simulated",
    )  # fmt: skip
    lines = [record.line(*head), "|---" * len(head) + "|"]
    for case in cases:
        cells = [f"`{case['case']}`, {case['batch']}"]
        columns = ("fp32", "fp32-tf32", "peer", "peer_options", *(["halfconv-standard"] if plain else []))
        cells += [_ms(case[who]) for who in columns]
        cells += [f"**{_ms(case['halfconv'])}**", _ms(case["torch-compile"]), _ms(case["torch-compile"], "burst_ms")]
        cells += [_drift(case["gpu"]), _drift(case["predicted"])]
        lines.append(record.line(*cells))
    return lines


def zoo_markdown(content: Mapping[str, Any]) -> str:
    """Return the documentation's table of trained models, where some peers' answers are wrong."""
    head = (
        "trained model", "FP32", "TF32", "best peer", "its drift", "best peer within tolerance", "halfconv", "drift: GPU",
        "simulated",
    )  # fmt: skip
    lines = [record.line(*head), "|---" * len(head) + "|"]
    for case in (case for case in summary(content["rows"]) if case["case"].startswith(OF_ZOO)):
        wrong = case["peer_options"] and case["peer_options"]["rel_l2"]
        cells = [f"`{case['case'].removeprefix(OF_ZOO)}`", _ms(case["fp32"]), _ms(case["fp32-tf32"]), _ms(case["peer_options"])]
        cells += ["NaN" if case["peer_options"] and wrong is None else _drift(wrong), _ms(case["peer_right"]) or "none"]
        cells += [f"**{_ms(case['halfconv'])}**", _drift(case["gpu"]), _drift(case["predicted"])]
        lines.append(record.line(*cells))
    said = f"(On one sample each, which halfconv and modelopt were given; drift is rel_l2, of which {TOLERANCE:g} is tolerated.)"
    return "\n".join([*lines, "", said])


def _drift(figure: float | None) -> str:
    return "" if figure is None else f"{figure:.2e}"


def _ms(row: Row | None, figure: str = "p50_ms") -> str:
    return "" if row is None else f"{row[figure]:.3g}"
