"""Writes the models that `bench/cuda.py` measures: exports them, and converts each with every tool, in processes that have a limit.

| file | is |
|---|---|
| ``DIR/KEY/model.onnx`` | the FP32 model: of `bench/gpu_models.py`, or, for KEY ``zoo/NAME``, of the zoo, with ``s0.npz`` |
| ``DIR/KEY/WHO.onnx`` | what a tool made of it; one that is there already is used as it is |
| ``DIR/KEY/prepared.json`` | WHO -> seconds and bytes, or why there is no such file |
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench import gpu_models, models
from bench.peers.environments import FUSED, HALFCONV, TOOLS, Tool
from bench.tools import ROOT, TEMPORARY, Failed, Row, interpreters, measured

PEERS = ("onnxconverter-common", "ort-float16", "ort-optimizer", "modelopt")
#: The file that has operators of halfconv's own.
KERNELS = "halfconv"
#: halfconv's file -> the target that it is made for, and ``kernels`` if operators of its own are put in.
TARGETS = {KERNELS: ("cuda", "kernels"), "halfconv-standard": ("cuda",), "halfconv-portable": ("portable",)}
WHO = (*TARGETS, *PEERS)
#: Who takes a sample of the zoo's models; for made-up models there are none.
SAMPLED = (*TARGETS, "modelopt")
#: Models of the zoo that travel: trained, and 39 MB together in FP32.
ZOO = ("magika", "efficientnet_lite0", "rapidocr_det", "dnsmos_sig_bak_ovr", "resemblyzer_lstm")
OF_ZOO = "zoo/"


@dataclass(frozen=True, slots=True)
class Case:
    """What is measured: a model at a batch size.

    Attributes:
        key: A key of `gpu_models.MODELS`, or ``zoo/NAME``.
        batch: The batch size; None for the sample of the zoo as it is.
    """

    key: str
    batch: int | None

    @property
    def recipe(self) -> gpu_models.Recipe | None:
        """How the model is made; None for one of the zoo."""
        return gpu_models.MODELS.get(self.key)

    def feeds(self, folder: Path, seed: int, batch: int | None = None) -> gpu_models.Feeds:
        """Return inputs: made up from a seed, or the zoo's sample.

        Args:
            folder: The folder that was prepared.
            seed: What they are made from.
            batch: Another batch size than the case's.
        """
        if self.recipe is not None:
            return self.recipe.feeds(batch or self.batch or 1, seed)
        with np.load(folder / self.key / "s0.npz") as stored:
            return {name: stored[name] for name in stored.files}

    def __str__(self) -> str:
        return self.key if self.batch is None else f"{self.key}@{self.batch}"


#: The rows that the result is about.
DEFAULT = (
    Case("bert_base", 32), Case("bert_base", 1), Case("vit_b16", 32), Case("convnext_t", 32), Case("resnet50", 32),
    Case("resnet50", 1),
)  # fmt: skip


def case_of(text: str) -> Case:
    """Read a case: ``KEY@BATCH``, or ``zoo/NAME``.

    Raises:
        ValueError: There is no such case; the message lists what there is.
    """
    key, at, batch = text.partition("@")
    if key.startswith(OF_ZOO) and len(key) > len(OF_ZOO):
        if at:
            raise ValueError(f"{text}: models of the zoo run on their own sample; try: {key}")
        return Case(key, None)
    if key not in gpu_models.MODELS:
        raise ValueError(f"unknown case {text!r}; try: {', '.join(gpu_models.MODELS)}, each with @BATCH, or zoo/NAME")
    if not batch.isdigit() or int(batch) < 1:
        raise ValueError(f"{text}: no batch size; try: {key}@32")
    return Case(key, int(batch))


def prepare(
    folder: Path, cases: Sequence[Case], who: Sequence[str], *, zoo: Path | None, here: bool, imports: Mapping[str, str], jobs: int,
    timeout: float,
) -> dict[str, dict[str, Row]]:  # fmt: skip
    """Export and convert models.

    Args:
        folder: Where to write.
        cases: Whose models.
        who: Which files to make beside the FP32 model.
        zoo: The zoo; None for the tests'.
        here: Whether all tools are in this interpreter.
        imports: Tool -> a folder that it finds packages in first.
        jobs: How many processes run at a time.
        timeout: Seconds after which a process is given up.

    Returns:
        Key -> who -> what ``prepared.json`` says.
    """
    tools = {name: _tool(name) for name in who}
    pythons, broken = interpreters([*{tool.who: tool for tool in tools.values()}.values()], here)
    keys = list(dict.fromkeys(case.key for case in cases))
    found: dict[str, dict[str, Row]] = {key: _known(folder / key) for key in keys}
    lock = threading.Lock()

    def attempt(key: str, name: str, make: Callable[[], Row]) -> None:
        try:
            row = make()
        except (Failed, OSError, subprocess.SubprocessError) as error:
            row = {"error": " ".join(str(error).split())[:240]}
        with lock:
            found[key][name] = row
            (folder / key / "prepared.json").write_text(json.dumps(found[key], indent=1) + "\n")
            print(key, name, row, flush=True)

    def convert(key: str, name: str) -> None:
        tool = tools[name]
        if tool.who in broken:
            attempt(key, name, lambda: {"error": broken[tool.who]})
        else:
            attempt(key, name, lambda: _converted(folder / key, key, name, pythons[tool.who], imports.get(name, ""), timeout))

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda key: attempt(key, "fp32", lambda: _source(folder / key, key, zoo, timeout)), keys))
        ready = [key for key in keys if "error" not in found[key]["fp32"]]
        list(pool.map(lambda pair: convert(*pair), [(key, name) for key in ready for name in who]))
    return found


def _tool(who: str) -> Tool:
    return {**TOOLS, **FUSED}[HALFCONV if who in TARGETS else who]


def _known(folder: Path) -> dict[str, Row]:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "prepared.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def _source(folder: Path, key: str, zoo: Path | None, timeout: float) -> Row:
    """Export the FP32 model, or copy it from the zoo, unless it is there."""
    target = folder / "model.onnx"
    if target.is_file():
        return {"bytes": target.stat().st_size}
    if key.startswith(OF_ZOO):
        case = models.case(key.removeprefix(OF_ZOO), zoo)
        if case.sample is None:
            raise FileNotFoundError(f"{key} has no sample")
        shutil.copy(case.sample, folder / "s0.npz")
        shutil.copy(case.model, target)
        return {"bytes": target.stat().st_size}
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=folder) as scratch:
        command = [sys.executable, str(ROOT / "bench" / "gpu_models.py"), scratch, key]
        usage, _ = measured(command, Path(scratch), timeout)
        (Path(scratch) / f"{key}.onnx").replace(target)
    return {"bytes": target.stat().st_size, "seconds": round(usage.seconds, 1)}


def _converted(folder: Path, key: str, who: str, python: str, imports: str, timeout: float) -> Row:
    """Convert a model with one tool, unless the file is there."""
    target = folder / f"{who}.onnx"
    if target.is_file():
        return {"bytes": target.stat().st_size}
    recipe = gpu_models.MODELS.get(key)
    more = {**TARGETS, "ort-optimizer": (recipe.optimizer if recipe else "bert",)}.get(who, ())
    if recipe is None and who in SAMPLED:
        more = (*more, str(folder / "s0.npz"))
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=folder) as scratch:
        output = Path(scratch) / target.name
        command = _tool(who).call(python, folder / "model.onnx", output, Path(scratch) / "report.json", *more)
        usage, _ = measured(command, Path(scratch), timeout, imports=[imports] if imports else [])
        if not output.is_file():
            raise Failed("no file was written")
        for path in Path(scratch).glob(f"{target.name}*"):  # the model last: it says that all is there
            if path != output:
                path.replace(folder / path.name)
        output.replace(target)
    return {"bytes": target.stat().st_size, "seconds": round(usage.seconds, 1)}


def total_mb(found: Mapping[str, Mapping[str, Row]]) -> float:
    """The size of all files together, in MB."""
    sizes = [row.get("bytes", 0) for rows in found.values() for row in rows.values()]
    return sum(size for size in sizes if isinstance(size, int)) / 1e6
