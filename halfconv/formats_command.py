"""The command ``formats``: what number formats make of a number."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from halfconv.terminal import console, json_option, print_json

if TYPE_CHECKING:
    from halfconv.formats.codec import Rounding

__all__ = ["formats"]


# A negative number is no option.
@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("value")
@click.option(
    "--format",
    "chosen",
    multiple=True,
    metavar="NAME",
    help="Show this format only: binary32, binary16, bfloat16, float8_e4m3fn or float8_e5m2.",
)
@click.option("--bits", metavar="NAME", help="VALUE is a bit pattern of this format, as 0x3c00 of binary16.")
@click.option("--add", metavar="NUMBER", help="Add a number, and show each step; in binary16 and bfloat16 without --format.")
@click.option("--multiply", metavar="NUMBER", help="Multiply by a number, likewise.")
@click.option(
    "--rounding",
    type=click.Choice(["nearest-even", "toward-zero", "stochastic"]),
    default="nearest-even",
    show_default=True,
    help="How VALUE, or the result, is rounded.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of stochastic rounding.")
@json_option
def formats(
    value: str, chosen: tuple[str, ...], bits: str | None, add: str | None, multiply: str | None, rounding: Rounding, seed: int,
    as_json: bool,
) -> None:  # fmt: skip
    """Show VALUE in half precision and other formats: its bits, neighbours and error, and what overflows."""
    from halfconv.formats.describe import describe

    report = describe(value, formats=chosen, bits=bits, add=add, multiply=multiply, rounding=rounding, seed=seed)
    if as_json:
        print_json(report.to_dict())
        return
    from halfconv.report.formats import show_formats

    show_formats(report, console())
