"""The commands that work on plan files: ``diff`` and ``explain``; and the option ``--plan`` of others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from halfconv.terminal import console, json_option, print_json

__all__ = ["diff", "explain", "plan_option"]

Command = Callable[..., Any]


def plan_option(words: str) -> Callable[[Command], Command]:
    """Return a decorator that adds the option --plan.

    Args:
        words: What the command does with the plan.
    """
    return click.option("--plan", type=click.Path(path_type=Path), metavar="FILE", help=words)


@click.command()
@click.argument("before", type=click.Path(path_type=Path), metavar="PLAN")
@click.argument("after", type=click.Path(path_type=Path), metavar="PLAN")
@json_option
def diff(before: Path, after: Path, as_json: bool) -> None:
    """Say what changed from one saved plan to another, and why."""
    from halfconv.plan_diff import diff_plans
    from halfconv.plan_file import read_plan

    found = diff_plans(read_plan(before), read_plan(after))
    if as_json:
        print_json(found.to_dict())
        return
    from halfconv.report.plans import show_diff

    show_diff(found, before, after, console())


@click.command()
@click.argument("value")
@click.option("--plan", type=click.Path(path_type=Path), metavar="FILE", required=True, help="The plan that --save-plan wrote.")
@json_option
def explain(value: str, plan: Path, as_json: bool) -> None:
    """Say all that a saved plan knows of one VALUE."""
    from halfconv.explanation import explain as run
    from halfconv.plan_file import read_plan

    found = run(read_plan(plan), value)
    if as_json:
        print_json(found.to_dict())
        return
    from halfconv.report.plans import show_explanation

    show_explanation(found, console())
