"""``halfconv formats``: numbers and patterns, what is printed, JSON, errors."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from halfconv.errors import UsageError
from halfconv.formats import FORMATS, describe
from halfconv.formats.describe import read_number
from tests.commands import run_here
from tests.test_schemas import strict, validate

Answer = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Answer:
    monkeypatch.setenv("COLUMNS", "100")

    return functools.partial(run_here, capfd, "formats")


def rows(out: str, name: str) -> list[str]:
    return [" ".join(line.split()) for line in out.splitlines() if line.startswith(name)]


# What is printed


def test_a_number(cli: Answer) -> None:
    code, out, err = cli("3.14159")
    assert (code, err) == (0, "")
    assert out.startswith("3.14159, rounded to nearest, ties to even\n")
    assert rows(out, "binary16") == [
        "binary16 0 10000 1001001000 0x4248 3.140625 rounded down",
        "binary16 3.138671875 3.142578125 -0.000965 0.000307 0.494 65504",
    ]
    assert [line.split()[0] for line in out.splitlines()[2:7]] == [format.name for format in FORMATS]


@pytest.mark.parametrize(
    "value, name, words",
    [
        ("70000", "binary16", ["0x7c00 inf overflows", "65504 inf inf inf inf"]),
        ("70000", "float8_e4m3fn", ["0x7f nan overflows", "- - - - - 448"]),
        ("-70000", "binary16", ["0xfc00 -inf overflows", "-inf -65504 -inf inf inf"]),
        ("1e-6", "binary16", ["0x0011 1.01327896118e-06 subnormal, 5 bits"]),
        ("1e-9", "binary16", ["0x0000 0 underflows"]),
        ("-0", "bfloat16", ["1 00000000 0000000 0x8000 -0 exact", "0 0 0"]),
        ("inf", "binary16", ["0x7c00 inf exact"]),
        ("-inf", "float8_e4m3fn", ["0xff nan NaN"]),
        ("nan", "binary16", ["0x7e00 nan NaN"]),
        ("-1.5e-3", "binary16", ["0x9625", "rounded down"]),
        ("65504", "binary16", ["0x7bff 65504 exact", "65472 inf"]),
    ],
)
def test_what_becomes_of_numbers(value: str, name: str, words: list[str], cli: Answer) -> None:
    code, out, _ = cli(value)
    assert code == 0
    found = " | ".join(rows(out, name))
    assert all(word in found for word in words), found


@pytest.mark.parametrize("value", ["-1.0132789611816406e-06", "-3.4e38", "1e-39", "-1.17e-38", "12345.678"])
def test_it_fits_a_hundred_columns(value: str, cli: Answer) -> None:
    _, out, _ = cli(value)
    assert len(out.splitlines()) == 4 + 2 * len(FORMATS)  # no line is broken
    assert max(map(len, out.splitlines())) <= 100


def test_a_pattern(cli: Answer) -> None:
    code, out, _ = cli("0x3c01", "--bits", "binary16", "--format", "binary16", "--format", "bfloat16")
    assert code == 0
    assert out.startswith("0x3c01 is 1.0009765625 in binary16, ")
    assert "0x3c01 1.0009765625 exact" in rows(out, "binary16")[0] and "0x3f80 1 rounded down" in rows(out, "bfloat16")[0]
    assert "float8" not in out
    _, out, _ = cli("0x7c01", "--bits", "binary16")
    assert "0x7c01 nan" in rows(out, "binary16")[0]  # the payload is shown


def test_roundings(cli: Answer) -> None:
    assert "0x7bff 65504 overflows" in rows(cli("1e5", "--rounding", "toward-zero")[1], "binary16")[0]
    outs = {cli("0.3", "--rounding", "stochastic", "--seed", str(seed), "--format", "bfloat16")[1] for seed in range(8)}
    assert len(outs) == 2
    assert cli("0.3", "--rounding", "stochastic")[1] == cli("0.3", "--rounding", "stochastic")[1]


def test_operations(cli: Answer) -> None:
    code, out, _ = cli("0.1", "--add", "-0.2", "--multiply", "0.2")
    assert code == 0
    titles = re.findall(r"^a (.) b in (\w+), rounded to nearest", out, re.MULTILINE)
    assert titles == [("+", "binary16"), ("+", "bfloat16"), ("·", "binary16"), ("·", "bfloat16")]
    for word in ("align", "exact sum", "add exponents", "exact product", "normalise", "guard", "round", "result"):
        assert word in out
    assert "next below" not in out
    assert cli("0x3c00", "--bits", "binary16", "--add", "0x3c00", "--format", "binary16")[1].rstrip().endswith("= 2.0")


# JSON


@pytest.mark.parametrize(
    "arguments",
    ["3.14159", "nan", "-inf", "1e5 --rounding toward-zero", "0x7c01 --bits binary16", "0.1 --add 0.2 --multiply inf",
     "1e30 --add 1 --format bfloat16 --rounding stochastic", "1e399", "-1e-399", "1 --add -1"],
)  # fmt: skip
def test_json_is_what_the_schema_says(arguments: str, cli: Answer) -> None:
    code, out, err = cli(*arguments.split(), "--json")
    assert (code, err) == (0, "")
    content = strict(out)
    validate("formats", content)
    assert content["given"] == arguments.split()[0]
    for entry in content["formats"]:
        assert int(entry["bits"].replace(" ", ""), 2) == int(entry["pattern"], 16)
        assert entry["exact"] == (entry["error"] == 0)


def test_json_in_figures(cli: Answer) -> None:
    content: dict[str, Any] = strict(cli("3.14159", "--json", "--format", "binary16")[1])
    (entry,) = content["formats"]
    assert content["number"] == 3.14159 and content["operations"] == []
    assert (entry["value"], entry["below"], entry["above"]) == (3.140625, 3.138671875, 3.142578125)
    assert (entry["sign"], entry["exponent"], entry["fraction"], entry["bias"]) == (0, 16, 0b1001001000, 15)
    assert entry["error"] == pytest.approx(3.140625 - 3.14159, abs=1e-15)
    assert entry["ulps"] == pytest.approx(abs(entry["error"]) / 2**-9)
    assert (entry["exact"], entry["overflows"], entry["underflows"]) == (False, False, False)


# Numbers are read exactly


def test_a_decimal_number_is_rounded_once() -> None:
    tie = 1 + Fraction(1, 2**11)
    assert Fraction("1.00048828125") == tie
    for text, pattern in (("1.00048828125", "0x3c00"), ("1.000488281250000000000000000001", "0x3c01"),
                          ("1.000488281249999999999999999999", "0x3c00"), ("1.00146484375", "0x3c02"),
                          ("1.001464843749999999999999999999", "0x3c01")):  # fmt: skip
        (stored,) = describe(text, formats=["binary16"]).stored
        assert stored.fields.hex == pattern, text
    (stored,) = describe("1.000488281250000000000000000001", formats=["binary16"]).stored
    assert stored.error == float(Fraction("1.0009765625") - Fraction("1.000488281250000000000000000001"))


@pytest.mark.parametrize("text", ["0.1", "-0.1", "0", "-0", "1e-399", "-1e399", "5e-324", "1e23", " 7 ", "1_000", "0e999999999999"])
def test_what_is_read(text: str) -> None:
    found = read_number(text)
    exact = Fraction(0) if "0e" in text else Fraction(text.strip())
    assert found.exact == exact and found.nearest == float(text)
    assert math.copysign(1, found.wide) == math.copysign(1, float(text))
    if Fraction(found.wide) != exact:
        assert np.float64(found.wide).view(np.int64) & 1
        assert found.wide in (found.nearest, math.nextafter(found.nearest, math.inf), math.nextafter(found.nearest, -math.inf))


# Errors


@pytest.mark.parametrize(
    "arguments, words",
    [
        ("abc", "'abc' is no number; try: 3.14159"),
        ("0x3c00", "0x3c00 --bits binary16"),
        ("--nope", "'--nope' is no number"),
        ("1 --format half", "'half'; try: one of binary32, binary16"),
        ("0x1 --bits fp16", "'fp16'; try: one of"),
        ("1.5 --bits binary16", "'1.5' is no bit pattern; try: 0x3c00"),
        ("0x10000 --bits binary16", "does not fit the 16 bits"),
        ("-1 --bits binary16", "does not fit the 16 bits"),
        ("1e500", "far beyond"),
        ("1e-500", "far beyond"),
        ("1e99999999999999999999", "far beyond"),
        ("1 --add x", "'x' is no number"),
        ("1 --rounding up", "nearest-even"),
        ("1 --seed -1", "--seed"),
        ("1 2", "2"),
        ("", "VALUE"),
    ],
)
def test_errors_are_one_line(arguments: str, words: str, cli: Answer) -> None:
    for more in ([], ["--json"]):
        code, out, err = cli(*arguments.split(), *more)
        assert (code, out) == (2, "")
        assert re.fullmatch(r"halfconv: [^\n]+; try: [^\n]+\n", err), err
        assert words in err


def test_errors_of_the_library() -> None:
    with pytest.raises(UsageError, match="'1,5' is no number"):
        describe("1,5")


def test_what_does_not_print_is_escaped(cli: Answer) -> None:
    code, out, _ = cli("\u20031.5")  # a blank that `float` takes
    assert code == 0 and out.startswith("\\u20031.5, rounded")
