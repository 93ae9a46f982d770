"""What `bench/train.py` and `bench/digits.py` measured, as the documentation's tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench import record

Row = Mapping[str, Any]
TITLES = {"train-fp32": "FP32", "train-tf32": "TF32", "train-fp16": "FP16", "train-bf16": "BF16"}
STAGES = {
    "trained": "as trained", "exported": "as exported", "simulated": "converted, in simulation", "cuda": "converted, on the GPU",
}  # fmt: skip


def training(content: Mapping[str, Any]) -> list[str]:
    """Return the lines of two tables, what a step costs and what the model is worth, and of where and when.

    Args:
        content: A result of `bench/train.py`.
    """
    rows = content["rows"]
    memory, place = _where(content)
    valued = {row["case"] for row in rows if row.get("metric") is not None}
    return [
        *_table(rows, "model", _cost), "",
        f"(Milliseconds of a step, and memory {memory};",
        f"{place}, torch {content['versions']['torch']}, {content['date'][:10]}; `bench/train.py`.)", "",
        *_table([row for row in rows if row["case"] in valued], "recipe", _worth), "",
        "(The recipe's metric on held-out data; steps that overflowed and were skipped in brackets.)",
    ]  # fmt: skip


def short(content: Mapping[str, Any]) -> list[str]:
    """Return the lines of one table, what a step costs and what the model is worth, and of where and when.

    Args:
        content: A result of `bench/train.py`.
    """
    found, cases, kinds = _grid(content["rows"])
    lines = [record.line("trained in", *(f"`{case}`" for case in cases)), "|---" * (1 + len(cases)) + "|"]
    for who in kinds:
        cells = (_both(found[case, who]) if (case, who) in found else "" for case in cases)
        lines.append(record.line(TITLES[who], *cells))
    memory, place = _where(content)
    return [
        *lines, "",
        f"(Milliseconds of a step, memory {memory}, and a recipe's metric on held-out data;",
        f"{place}, torch {content['versions']['torch']}, {content['date'][:10]}; `bench/train.py`.)",
    ]  # fmt: skip


def digits(content: Mapping[str, Any]) -> list[str]:
    """Return the lines of the table of images that each stage gets right, and of where and when.

    Args:
        content: A result of `bench/digits.py`.
    """
    rows = content["rows"]
    stages = {key: title for key, title in STAGES.items() if any(key in row for row in rows)}
    lines = [record.line("digits, trained in", *stages.values()), "|---" * (1 + len(stages)) + "|"]
    lines += [record.line(TITLES[row["who"]], *(f"{row[key]:.2%}" if key in row else "fails" for key in stages)) for row in rows]
    images = max((row.get("images", 0) for row in rows), default=0)
    place = "CPU" if content["machine"]["card"] == "cpu" else content["machine"]["card"]
    return [
        *lines, "",
        f"(Share of {images:,} images that is right, each predicted by a model that has not seen it;",
        f"{place}, {content['date'][:10]}; `bench/digits.py`.)",
    ]  # fmt: skip


def _table(rows: Sequence[Row], heading: str, cell: Callable[[Row], str]) -> list[str]:
    """Lay rows out: a line for each case, a column for each precision that there is."""
    found, cases, kinds = _grid(rows)
    lines = [record.line(heading, *(TITLES[who] for who in kinds)), "|---" * (1 + len(kinds)) + "|"]
    for case in cases:
        cells = (cell(found[case, who]) if (case, who) in found else "" for who in kinds)
        lines.append(record.line(f"`{case}`", *cells))
    return lines


def _grid(rows: Sequence[Row]) -> tuple[dict[tuple[str, str], Row], list[str], list[str]]:
    """Return the rows by case and precision, the cases, and the precisions that there are."""
    found = {(row["case"], row["who"]): row for row in rows}
    cases = list(dict.fromkeys(row["case"] for row in rows))
    return found, cases, [who for who in TITLES if any(row["who"] == who for row in rows)]


def _where(content: Mapping[str, Any]) -> tuple[str, str]:
    """Return what the figures of memory are, and the machine."""
    if content["machine"]["card"] == "cpu":
        return "that the process had at most", f"{content['machine']['cores']} cores"
    return "that PyTorch held on the GPU at most", content["machine"]["card"]


def _cost(row: Row) -> str:
    return "fails" if "error" in row else f"{row['step_ms']:.2f} ms, {row['peak_mb']:,.0f} MB"


def _both(row: Row) -> str:
    if "error" in row:
        return "fails"
    return _cost(row) + (f", {row['metric']:.3f}" if row["metric"] is not None else "")


def _worth(row: Row) -> str:
    if "error" in row:
        return "fails"
    return f"{row['metric']:.4f}" + (f" ({row['skipped']})" if row["skipped"] else "")
