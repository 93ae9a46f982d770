"""The command ``bench``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from halfconv.errors import UsageError
from halfconv.html_option import check_html, html_option, write_html
from halfconv.terminal import console, json_option, print_json, progress

__all__ = ["bench"]


def _numbers(_: click.Context, option: click.Parameter, text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"{text!r} is no list of whole numbers; try: --batch 1,32", param=option) from None
    if min(found) < 1:
        raise click.BadParameter(f"{text!r} has a number below 1; try: --batch 1,32", param=option)
    return found


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="MODEL...")
@click.option("--batch", "batches", default="1", show_default=True, callback=_numbers, metavar="N,…", help="Batch sizes.")
@click.option("--samples", metavar="PATH", help="Real inputs, of which the first is used; else one is made up.")
@click.option("--provider", type=click.Choice(["auto", "cpu", "cuda", "tensorrt"]), default="auto", show_default=True,
              help="What runs the models.")
@click.option("--device", default=0, show_default=True, metavar="N", help="The GPU.")
@click.option("--profile/--no-profile", default=True, show_default=True, help="Use the profiles beside the models.")
@click.option("--tune", is_flag=True, help="First find each model's fastest session options here, and write its profile.")
@click.option("--seconds", default=2.0, show_default=True, help="How long each model runs at each batch size, after warm-up.")
@click.option("--engine-cache", type=click.Path(path_type=Path), metavar="DIR", help="Folder that keeps TensorRT's engines.")
@click.option("--builder-level", type=click.IntRange(0, 5), metavar="N", help="How hard TensorRT searches when it builds, 0 to 5.")
@click.option("--threads", type=click.IntRange(1), help="Threads that compute on the CPU.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of made-up inputs.")
@click.option("--markdown", type=click.Path(path_type=Path), metavar="FILE", help="Write the table as Markdown, too.")
@html_option
@json_option  # fmt: skip
def bench(
    models: tuple[Path, ...], batches: list[int], samples: str | None, provider: str, device: int, profile: bool, tune: bool,
    seconds: float, engine_cache: Path | None, builder_level: int | None, threads: int | None, seed: int, markdown: Path | None,
    html: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Measure MODELs side by side: latency, throughput, memory, and where their nodes run.

    The first one is what the others are compared with.
    """
    from halfconv.benchmark import bench as run
    from halfconv.report.bench import as_markdown, show_bench, show_search
    from halfconv.report.files import check_report_files
    from halfconv.runtime.tensorrt import EngineOptions

    if provider != "tensorrt" and not (engine_cache is None and builder_level is None):
        raise UsageError("--engine-cache and --builder-level are TensorRT's", "--provider tensorrt")
    engine = EngineOptions(engine_cache, builder_level)
    if tune and not profile:
        raise UsageError("--tune writes profiles, which --no-profile leaves out", "one of them")
    check_report_files({"--markdown": markdown}, models)
    check_html(html, {"--markdown": markdown}, models)
    with progress(as_json, f"measuring {len(models)} models") as on_progress:
        searches = []
        if tune:
            from halfconv.profile_search import search_profile

            searches = [
                search_profile(
                    model, batches=batches, samples=samples, provider=provider, device_id=device, seconds=seconds / 2, seed=seed,
                    engine=engine, on_progress=on_progress,
                )
                for model in models
            ]  # fmt: skip
        report = run(
            models, batches=batches, samples=samples, provider=provider, device_id=device, profile=profile, seconds=seconds,
            threads=threads, seed=seed, engine=engine, on_progress=on_progress,
        )  # fmt: skip
    if markdown is not None:
        from halfconv.storage import atomic_text

        atomic_text(markdown, as_markdown(report))
    if html is not None:
        from halfconv.report.html.bench import bench_view

        files: dict[str, Path | None] = {f"model {number}": model for number, model in enumerate(models, 1)}
        files["samples"] = Path(samples) if samples else None
        seeds = {} if samples else {"made-up inputs": seed}
        write_html(html, lambda origin: bench_view(report.to_dict(), origin), files, seeds)
    if as_json:
        print_json({**report.to_dict(), "tuned": [asdict(search) for search in searches]})
    else:
        for search in searches:
            show_search(search, console())
        show_bench(report, console())
