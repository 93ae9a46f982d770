"""The documentation's tables of training, from made-up results."""

from __future__ import annotations

from typing import Any

from bench import train_table


def content(rows: list[dict[str, Any]], card: str = "No Card") -> dict[str, Any]:
    return {"machine": {"card": card, "cores": 3}, "versions": {"torch": "4.5.6"}, "date": "2001-02-03T04:05:06", "rows": rows}


def figures(case: str, kind: str, step: float, memory: float, metric: float | None, skipped: int = 0) -> dict[str, Any]:
    return {"case": case, "who": f"train-{kind}", "step_ms": step, "peak_mb": memory, "metric": metric, "skipped": skipped}


ROWS = [
    figures("net", "fp32", 2.0, 1234.4, 0.9),
    figures("net", "fp16", 1.256, 800, 0.8951, 3),
    {"case": "net", "who": "train-bf16", "peak_mb": 1.0, "error": "no kernel"},
    figures("large@64", "fp32", 50.0, 9000, None),
    figures("large@64", "bf16", 20.0, 5000, None),
]


def test_a_line_for_each_case_and_a_column_for_each_precision() -> None:
    assert train_table.training(content(ROWS)) == [
        "| model | FP32 | FP16 | BF16 |",
        "|---|---|---|---|",
        "| `net` | 2.00 ms, 1,234 MB | 1.26 ms, 800 MB | fails |",
        "| `large@64` | 50.00 ms, 9,000 MB |  | 20.00 ms, 5,000 MB |",
        "",
        "(Milliseconds of a step, and memory that PyTorch held on the GPU at most;",
        "No Card, torch 4.5.6, 2001-02-03; `bench/train.py`.)",
        "",
        "| recipe | FP32 | FP16 | BF16 |",
        "|---|---|---|---|",
        "| `net` | 0.9000 | 0.8951 (3) | fails |",
        "",
        "(The recipe's metric on held-out data; steps that overflowed and were skipped in brackets.)",
    ]


def test_in_short_a_line_for_each_precision_and_a_column_for_each_case() -> None:
    assert train_table.short(content(ROWS)) == [
        "| trained in | `net` | `large@64` |",
        "|---|---|---|",
        "| FP32 | 2.00 ms, 1,234 MB, 0.900 | 50.00 ms, 9,000 MB |",
        "| FP16 | 1.26 ms, 800 MB, 0.895 |  |",
        "| BF16 | fails | 20.00 ms, 5,000 MB |",
        "",
        "(Milliseconds of a step, memory that PyTorch held on the GPU at most, and a recipe's metric on held-out data;",
        "No Card, torch 4.5.6, 2001-02-03; `bench/train.py`.)",
    ]
    assert train_table.short(content(ROWS[:1], "cpu"))[-1] == "3 cores, torch 4.5.6, 2001-02-03; `bench/train.py`.)"


def test_a_result_of_a_cpu_says_so() -> None:
    assert train_table.training(content(ROWS[:1], "cpu"))[4:6] == [
        "(Milliseconds of a step, and memory that the process had at most;",
        "3 cores, torch 4.5.6, 2001-02-03; `bench/train.py`.)",
    ]


def test_digits_from_training_to_conversion() -> None:
    right = {"images": 1797, "trained": 0.99165, "exported": 0.99165, "simulated": 0.991096, "cuda": 0.992209}
    rows = [{"who": "train-fp32", **right}, {"who": "train-fp16", "error": "no device"}]
    assert train_table.digits(content(rows)) == [
        "| digits, trained in | as trained | as exported | converted, in simulation | converted, on the GPU |",
        "|---|---|---|---|---|",
        "| FP32 | 99.17% | 99.17% | 99.11% | 99.22% |",
        "| FP16 | fails | fails | fails | fails |",
        "",
        "(Share of 1,797 images that is right, each predicted by a model that has not seen it;",
        "No Card, 2001-02-03; `bench/digits.py`.)",
    ]
    del rows[0]["cuda"]
    assert train_table.digits(content(rows[:1], "cpu"))[:3] == [
        "| digits, trained in | as trained | as exported | converted, in simulation |",
        "|---|---|---|---|",
        "| FP32 | 99.17% | 99.17% | 99.11% |",
    ]
