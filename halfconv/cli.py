"""The command line: parse, call the library, render, exit code. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from halfconv import __version__
from halfconv.bench_command import bench
from halfconv.config import find_options
from halfconv.deploy_command import deploy
from halfconv.errors import CheckFailed, HalfconvError
from halfconv.export_command import export
from halfconv.formats_command import formats
from halfconv.html_option import COMMAND, check_html, html_option
from halfconv.kernels_command import kernels
from halfconv.plan_commands import diff, explain, plan_option
from halfconv.sweep_command import sweep
from halfconv.terminal import Size, is_verbose
from halfconv.terminal import console as _console
from halfconv.terminal import json_option as _json_option
from halfconv.terminal import print_json as _print_json
from halfconv.terminal import progress as _progress
from halfconv.train_command import train

if TYPE_CHECKING:
    from halfconv.drift.report import DriftReport
    from halfconv.precision.rules import Rules

__all__ = ["cli", "main"]

INTERNAL_ERROR = 70
TARGETS = ("portable", "cuda", "tensorrt", "cpu", "coreml", "xnnpack", "qnn", "web")

Command = Callable[..., Any]


def _to_option(*more: str) -> Callable[[Command], Command]:
    words = "Half-precision format" + ("; 'auto' tries both on the samples." if more else ".")
    return click.option("--to", type=click.Choice(["fp16", "bf16", *more]), default="fp16", show_default=True, help=words)


def _rule_options(command: Command) -> Command:
    """Add the options that decide precision, which `convert` and `inspect` share."""
    options = (
        click.option("--target", type=click.Choice(TARGETS), default="portable", show_default=True,
                     help="Where the model will run; 'portable' uses standard ONNX operators only."),
        click.option("--block-op", multiple=True, metavar="OP", help="Keep this operator in FP32."),
        click.option("--block-node", multiple=True, metavar="REGEX", help="Keep nodes in FP32 whose whole id matches."),
        click.option("--block-scope", multiple=True, metavar="PREFIX", help="Keep a part of the model in FP32, by name prefix."),
        click.option("--block-pattern", multiple=True, metavar="NAME",
                     help="Keep a pattern in FP32: norm, exp-sum, small-epsilon, log, log-sum, wide-sum, wide-mean, scale-up, "
                          "quantised, shape-arithmetic, mask-sum, softmax-attention."),
        click.option("--allow-op", multiple=True, metavar="OP", help="Force this operator to half, against the block list."),
        click.option("--allow-node", multiple=True, metavar="REGEX", help="Force nodes to half, against the block list."),
        click.option("--block-list", type=click.Choice(["default", "none", "onnxconverter-common"]), default="default",
                     show_default=True, help="The list of operators that stay FP32 unless you say otherwise."),
        click.option("--fuse/--no-fuse", default=True, show_default=True, help="Fuse decomposed norms first."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def _links_option(command: Command) -> Command:
    words = "Read data files that are links if their real path lies below this folder, as in a model hub's cache."
    return click.option("--allow-links", type=click.Path(path_type=Path), metavar="ROOT", help=words)(command)


def _data_options(command: Command) -> Command:
    """Add the options of `convert` for planning with data."""
    options = (
        click.option("--samples", metavar="PATH|MODULE:FUNCTION",
                     help="Real inputs: .npz, a folder of .npz or .npy, Polygraphy JSON, or a function. Ranges and simulation on "
                          "them replace the default block list, and values stay FP32 until the tolerance holds."),
        click.option("--tolerance", multiple=True, metavar="METRIC=VALUE[@OUTPUT]",
                     help="A bound of drift.  [default: rel_l2=1e-2 with samples]"),
        click.option("--tolerance-file", type=click.Path(path_type=Path), help="Bounds in a TOML file."),
        click.option("--metric", multiple=True, metavar="MODULE:FUNCTION",
                     help="A metric f(outputs, extras) -> float, or 'accuracy'."),
        click.option("--ranges", type=click.Path(path_type=Path), help="Use ranges from this file in place of measuring them."),
        click.option("--save-ranges", type=click.Path(path_type=Path), help="Write the ranges of all values as JSON."),
        click.option("--repair/--no-repair", default=True, show_default=True,
                     help="Force values to FP32 where the tolerance does not hold."),
        click.option("--time-limit", type=click.FloatRange(min=0), metavar="SECONDS",
                     help="End the search for these after this time, with the best plan found."),
        click.option("--force-failed", type=click.Path(path_type=Path), metavar="OUT",
                     help="Write a model that does not meet the tolerance here, for study."),
        click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True,
                     help="Seed of samples that are made up where none are given."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def _rules(options: dict[str, Any]) -> Rules:
    from halfconv.precision.rules import Rules

    return Rules(
        block_ops=options["block_op"],
        block_nodes=options["block_node"],
        block_scopes=options["block_scope"],
        block_patterns=options["block_pattern"],
        allow_ops=options["allow_op"],
        allow_nodes=options["allow_node"],
        block_list=options["block_list"],
    )


class _Group(click.Group):
    """Reads the configuration file before a command's own options."""

    def make_context(self, info_name: str | None, args: list[str], *more: Any, **extra: Any) -> click.Context:
        given = list(args)
        asks_for_help = any(argument in ("-h", "--help", "--version") for argument in args)
        context = super().make_context(info_name, args, *more, **extra)
        context.meta[COMMAND] = given
        if not asks_for_help:  # which a broken file must not prevent
            context.default_map = self._defaults()
        return context

    def invoke(self, context: click.Context) -> Any:
        """Run the command; with --verbose an internal error is shown in full before `main` reports it."""
        try:
            return super().invoke(context)
        except (HalfconvError, click.ClickException, click.exceptions.Exit, click.Abort, OSError):
            raise
        except Exception:
            if is_verbose():
                import traceback

                traceback.print_exc()
            raise

    def _defaults(self) -> dict[str, dict[str, Any]]:
        flags = {
            name: {p.opts[-1].lstrip("-").replace("-", "_"): p for p in command.params if isinstance(p, click.Option)}
            for name, command in self.commands.items()
        }
        found = find_options(Path.cwd(), {name: frozenset(options) for name, options in flags.items()})
        return {
            command: {
                str(option.name): [value] if option.multiple and isinstance(value, str) else value
                for key, value in values.items()
                if (option := flags[command][key])
            }
            for command, values in found.items()
        }


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="halfconv")
def cli() -> None:
    """Convert ONNX models to half precision, with a reason for every value that stays FP32."""


@cli.command()
@click.argument("model", type=click.Path(path_type=Path))
@_to_option()
@_rule_options
@_links_option
@plan_option("Show what this saved plan keeps in FP32, and check that it fits MODEL.")
@click.option("--fusions", is_flag=True, help="Show what would be fused for the target, and what not and why.")
@_json_option
def inspect(
    model: Path, to: str, target: str, fuse: bool, allow_links: Path | None, plan: Path | None, fusions: bool, as_json: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Show what MODEL holds, and what would stay FP32 and why."""
    from halfconv.inspection import inspect as run

    with _progress(as_json, f"inspecting {model.name}"):
        report = run(model, to=to, target=target, rules=_rules(options), fuse=fuse, plan=plan, allow_links=allow_links)
    if as_json:
        _print_json(report.to_dict())
        return
    if fusions:
        from halfconv.report.fusions import show_fusions

        show_fusions(report, _console())
        return
    if plan is not None:
        from halfconv.report.plans import show_fit

        show_fit(report, plan, _console())
        return
    from halfconv.report.console import show_inspect

    show_inspect(report, _console())


@cli.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Output file.  [default: MODEL.TO.onnx beside MODEL]")
@_to_option("auto")
@_rule_options
@click.option(
    "--half-io",
    is_flag=False,
    flag_value="*",
    multiple=True,
    metavar="[NAME,…]",
    help="Make inputs and outputs half: all, or those named with --half-io=NAME,…",
)
@click.option(
    "--keep-io",
    is_flag=False,
    flag_value="*",
    multiple=True,
    metavar="[NAME,…]",
    help="Keep inputs and outputs in FP32 (the default), or those named with --keep-io=NAME,… beside --half-io.",
)
@click.option("--check/--no-check", default=True, show_default=True,
              help="Simulate and check the result before it is put in place.")
@click.option(
    "--external-data",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Store weights beside the model; 'auto' does so where MODEL does, and beyond 2 GB.",
)
@_links_option
@click.option("--shard-size", type=Size(), metavar="SIZE",
              help="Cut the weights beside the model into files of up to this size, as in 4GB.")
@click.option("--data-format", type=click.Choice(["onnx", "safetensors"]), default="onnx", show_default=True,
              help="What the files of weights beside the model are.")
@click.option("--kernels", is_flag=True,
              help="Put in operators of halfconv's own, for which `halfconv kernels build` makes CUDA kernels.")
@plan_option("Replay a saved plan, on the same model or on one of the same structure.")
@click.option("--save-plan", type=click.Path(path_type=Path), help="Write the precision plan as JSON.")
@_data_options
@html_option
@_json_option
def convert(
    model: Path,
    output: Path | None,
    to: str,
    target: str,
    fuse: bool,
    half_io: tuple[str, ...],
    keep_io: tuple[str, ...],
    check: bool,
    external_data: str,
    shard_size: int | None,
    data_format: str,
    allow_links: Path | None,
    kernels: bool,
    plan: Path | None,
    save_plan: Path | None,
    samples: str | None,
    tolerance: tuple[str, ...],
    tolerance_file: Path | None,
    metric: tuple[str, ...],
    ranges: Path | None,
    save_ranges: Path | None,
    repair: bool,
    time_limit: float | None,
    force_failed: Path | None,
    seed: int,
    html: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Convert MODEL to half precision."""
    from halfconv.pipeline import convert as run
    from halfconv.profile import profile_path

    others = {"--save-plan": save_plan, "--save-ranges": save_ranges, "--force-failed": force_failed}
    outputs = [output] if output is not None else [model.parent / f"{model.stem}.{name}.onnx" for name in ("fp16", "bf16")]
    others |= {f"-o {file}": file for path in outputs if path.name for file in (path, profile_path(path))}
    check_html(html, others, (model,))
    half_names, keep_names = _names(half_io), _names(keep_io)
    context = click.get_current_context()
    from_file = context.get_parameter_source("half_io") == click.core.ParameterSource.DEFAULT_MAP
    if from_file and context.get_parameter_source("keep_io") == click.core.ParameterSource.COMMANDLINE:  # the flag wins
        half_names = [] if "*" in keep_names else [name for name in half_names if name not in keep_names]
    if "*" in half_names and "*" in keep_names:
        raise click.UsageError("--half-io and --keep-io contradict each other; try: one of them, or name the exceptions")
    with _progress(as_json, f"converting {model.name}") as on_progress:
        try:
            result = run(
                model, output, to=to, target=target, fuse=fuse, check=check, external_data=external_data, shard_size=shard_size,
                data_format=data_format, save_plan=save_plan, allow_links=allow_links,
                half_io=True if "*" in half_names else [name for name in half_names if name != "*"],
                keep_io=[name for name in keep_names if name != "*"],
                block_ops=options["block_op"], block_nodes=options["block_node"], block_scopes=options["block_scope"],
                block_patterns=options["block_pattern"], allow_ops=options["allow_op"], allow_nodes=options["allow_node"],
                block_list=options["block_list"], samples=samples, tolerance=list(tolerance) or None, tolerance_file=tolerance_file,
                metrics=metric, ranges=ranges, save_ranges=save_ranges, repair=repair, time_limit=time_limit,
                force_failed=force_failed, seed=seed, kernels=kernels, plan=plan, on_progress=on_progress,
            )  # fmt: skip
        except CheckFailed as error:
            if html is not None and error.study is not None:
                from halfconv.html_pages import write_failed_page

                write_failed_page(html, model, error.study, samples, seed, allow_links)
            raise
        if html is not None:
            from halfconv.html_pages import write_convert_page

            write_convert_page(html, model, result, samples, seed, allow_links)
    if as_json:
        _print_json(result.to_dict())
        return
    from halfconv.report.console import show_convert

    show_convert(result, _console())


@cli.command()
@click.argument("reference", type=click.Path(path_type=Path))
@click.argument("candidate", type=click.Path(path_type=Path))
@click.option("--samples", metavar="PATH|MODULE:FUNCTION",
              help="Inputs: .npz, a folder of .npz or .npy, Polygraphy JSON, or a function.  [default: synthetic]")
@click.option("--count", type=int, default=4, show_default=True, help="Number of synthetic samples.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of synthetic samples.")
@click.option("--on", type=click.Choice(["simulate", "cpu", "cuda"]), default="simulate", show_default=True,
              help="How CANDIDATE is run: with a GPU's rounding simulated on the CPU, or by a provider of ONNX Runtime.")
@click.option("--tolerance", multiple=True, metavar="METRIC=VALUE[@OUTPUT]", help="A bound, such as rel_l2=1e-2.")
@click.option("--tolerance-file", type=click.Path(path_type=Path), help="Bounds in a TOML file.")
@click.option("--metric", multiple=True, metavar="MODULE:FUNCTION", help="A metric f(outputs, extras) -> float, or 'accuracy'.")
@click.option("--layers", is_flag=True, help="Compare every value inside, too, and say which drift most.")
@click.option("--junit", type=click.Path(path_type=Path), help="Write a JUnit file, one case per output.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write Markdown, as for a CI step summary.")
@html_option
@_links_option
@click.option("--baseline", type=click.Path(path_type=Path), help="Fail where drift has grown against this committed file.")
@click.option("--update-baseline", is_flag=True, help="Write the baseline instead of comparing with it.")
@_json_option
def validate(
    reference: Path,
    candidate: Path,
    samples: str | None,
    count: int,
    seed: int,
    on: str,
    tolerance: tuple[str, ...],
    tolerance_file: Path | None,
    metric: tuple[str, ...],
    layers: bool,
    junit: Path | None,
    markdown: Path | None,
    html: Path | None,
    allow_links: Path | None,
    baseline: Path | None,
    update_baseline: bool,
    as_json: bool,
) -> None:
    """Measure the drift of CANDIDATE against REFERENCE; exit code 1 if it is too large."""
    from halfconv.drift.compare import validate as run
    from halfconv.report.files import check_report_files, write_reports

    if update_baseline and baseline is None:
        raise click.UsageError("--update-baseline needs the file; try: --baseline drift.json --update-baseline")
    written = {"--junit": junit, "--markdown": markdown, "--baseline": baseline if update_baseline else None}
    given = (samples, tolerance_file, None if update_baseline else baseline)
    read = (reference, candidate, *(Path(file) for file in given if file is not None))
    check_report_files(written, read)
    check_html(html, written, read)
    with _progress(as_json, f"validating {candidate.name}") as on_progress:
        report = run(
            reference, candidate, samples=samples, count=count, seed=seed, on=on, tolerance=list(tolerance), metrics=metric,
            tolerance_file=tolerance_file, layers=layers or html is not None, baseline=None if update_baseline else baseline,
            allow_links=allow_links, on_progress=on_progress,
        )  # fmt: skip
    write_reports(report, junit=junit, markdown=markdown, baseline=written["--baseline"], compared=baseline is not None)
    if html is not None:
        from halfconv.html_pages import write_validate_page

        write_validate_page(html, (reference, candidate), report, samples, seed)
    if as_json:
        _print_json(report.to_dict())
    else:
        from halfconv.report.validation import show_validation

        show_validation(report, _console())
    _annotate(report)
    if not report.passed:
        sys.exit(1)


@cli.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to keep the converted model in.")
@_json_option
def demo(output: Path | None, as_json: bool) -> None:
    """Convert a real model that a dependency ships (Magika), and try it on real files."""
    from halfconv.demo import render, run_demo

    with _progress(as_json, "running the demo"):
        report = run_demo(output)
    if as_json:
        _print_json(report.to_dict())
    else:
        render(report, _console())


@cli.command()
@click.option("--provider", type=click.Choice(["cpu", "cuda", "tensorrt"]),
              help="The one that must work.  [default: cuda if ONNX Runtime's GPU package is installed, else cpu]")
@_json_option
def doctor(provider: str | None, as_json: bool) -> None:
    """Say what this machine can run, and why not; exit code 1 if the provider does not work."""
    from halfconv.doctor import doctor as run

    with _progress(as_json, "looking at this machine"):
        report = run(provider)
    if as_json:
        _print_json(report.to_dict())
    else:
        from halfconv.report.doctor import show_doctor

        show_doctor(report, _console())
    if not report.works:
        sys.exit(1)


cli.add_command(bench)
cli.add_command(deploy)
cli.add_command(diff)
cli.add_command(explain)
cli.add_command(export)
cli.add_command(formats)
cli.add_command(kernels)
cli.add_command(sweep)
cli.add_command(train)


def _annotate(report: DriftReport) -> None:
    """Annotate the run in GitHub Actions, which reads commands from either stream."""
    from halfconv.report.github import annotations, in_github_actions

    if in_github_actions(os.environ):
        for line in annotations(report):
            click.echo(line, err=True)


def _names(given: tuple[str, ...]) -> list[str]:
    return [name for text in given for name in text.split(",") if name]


def _shown(message: object) -> str:
    """Return a message on one line; names in it, which come from models and files, cannot drive a terminal."""
    from halfconv.report.text import visible

    return visible(" ".join(str(message).split()))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with the contract's code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without the arrow shows a question mark
    try:
        cli.main(arguments, standalone_mode=False)
    except HalfconvError as error:
        click.echo(f"halfconv: {_shown(error)}", err=True)
        sys.exit(error.exit_code)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.Abort:
        click.echo("halfconv: interrupted", err=True)
        sys.exit(130)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(2)
    except click.ClickException as error:
        message = error.format_message().rstrip(".")
        hint = "" if "try:" in message else "; try: halfconv --help"
        click.echo(f"halfconv: {_shown(message)}{hint}", err=True)
        sys.exit(2)
    except BrokenPipeError:
        sys.exit(0)
    except OSError as error:
        click.echo(
            f"halfconv: {error.filename or 'output'}: {error.strerror or error}; try: free space, or another place", err=True
        )
        sys.exit(2)
    except Exception as error:
        text = _shown(f"{type(error).__name__}: {error}")
        click.echo(f"halfconv: internal error: {text}; try: report it with this model", err=True)
        sys.exit(INTERNAL_ERROR)


if __name__ == "__main__":
    main()
