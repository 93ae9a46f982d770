"""`Parts`: what every kind of package is made from, checked before a kind sees it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from halfconv.deploy.recorded import Recorded, Recording

if TYPE_CHECKING:
    from halfconv.runtime.settings import Profile

__all__ = ["Note", "Options", "Parts", "Slot", "place_model"]

#: A sentence for the report.
Note = str


@dataclass(frozen=True, slots=True)
class Slot:
    """An input or output of the model.

    Attributes:
        name: Its name.
        dtype: Its element type: ``float32``, ``int64``, ``bool``, …
        dims: Its dimensions; a free one is a name, ``?`` where it has none.
    """

    name: str
    dtype: str
    dims: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Parts:
    """What a package is made from.

    Attributes:
        name: A file's stem that is safe everywhere.
        half: The converted model to ship; its files of weights are `half_data`.
        half_data: Location in that model -> real path.
        reference: The FP32 model.
        reference_data: Location in that model -> real path.
        source_sha256: Of the FP32 model's file that the user gave; `reference` differs from it where dimensions were fixed.
        profile: The converted model's run profile; None without one.
        profile_file: Its file; None without one.
        inputs: The inputs, which both models share.
        outputs: The outputs, likewise.
        recorded: Samples with the FP32 model's outputs.
        sample_kind: ``given`` or ``synthetic``.
        tolerance: ``METRIC`` or ``METRIC@OUTPUT`` -> bound.
        to: ``fp16`` or ``bf16``.
        target: What the model was converted for.
        min_ort: The oldest ONNX Runtime that loads the converted model: ``1.20``.
        opsets: Domain -> opset of the converted model.
    """

    name: str
    half: Path
    half_data: Mapping[str, Path]
    reference: Path
    reference_data: Mapping[str, Path]
    source_sha256: str
    profile: Profile | None
    profile_file: Path | None
    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]
    recorded: tuple[Recorded, ...]
    sample_kind: str
    tolerance: dict[str, float]
    to: str
    target: str
    min_ort: str
    opsets: Mapping[str, int] = field(default_factory=dict)

    @property
    def model_name(self) -> str:
        """The converted model's file name in a package."""
        return f"{self.name}.{self.to}.onnx"

    @property
    def recording(self) -> Recording:
        """The samples as `halfconv.deploy.recorded.write_samples` takes them."""
        return Recording(self.recorded, self.tolerance, self.sample_kind, self.to)

    @property
    def half_bytes(self) -> int:
        """Bytes of the converted model with its files of weights."""
        return self.half.stat().st_size + sum(file.stat().st_size for file in set(self.half_data.values()))

    @property
    def reference_bytes(self) -> int:
        """Bytes of the FP32 model with its files of weights."""
        return self.reference.stat().st_size + sum(file.stat().st_size for file in set(self.reference_data.values()))


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asks of a kind, beside the model.

    Attributes:
        fixed: Dimension -> size, already applied to both models.
        chunk_bytes: Largest file of weights, where a kind cuts them; None for the kind's own.
        extra: Settings of a kind, by name.
    """

    fixed: Mapping[str, int] = field(default_factory=dict)
    chunk_bytes: int | None = None
    extra: Mapping[str, str] = field(default_factory=dict)


def place_model(model: Path, data: Mapping[str, Path], folder: Path, name: str, profile: Path | None = None) -> Path:
    """Copy a model with its files of weights, and its profile, into a package.

    Args:
        model: The model's file.
        data: Location in the model -> real path of its files of weights.
        folder: Where; it is made.
        name: The file's name there.
        profile: Its run profile.

    Returns:
        The model's new path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for location, real in data.items():
        (folder / location).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(real, folder / location)
    if profile is not None:
        shutil.copyfile(profile, folder / f"{name}.profile.json")
    shutil.copyfile(model, folder / name)
    return folder / name
