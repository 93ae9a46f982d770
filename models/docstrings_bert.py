"""Text: which package a sentence of documentation comes from, by a small BERT."""

from __future__ import annotations

import ast
import importlib.util
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from halfconv.drift.task import accuracy
from halfconv.errors import EnvironmentProblem
from halfconv.recipes.recipe import Recipe, Split

PACKAGES = ("numpy", "scipy", "sklearn", "torch")
#: Words that would give the package away.
NAMES = re.compile(r"\b(numpy|scipy|sklearn|scikit|torch|pytorch|np|array_like|ndarray|tensors?)\b")
#: Sentences of each package, words of a sentence, and different words that are told apart.
SENTENCES, LENGTH, WORDS = 1500, 24, 4096
#: Share of the files whose sentences are held out, in percent.
HELD_OUT = 20


class Classifier(nn.Module):
    """BERT of two layers, and four scores from the mean of its last states."""

    def __init__(self) -> None:
        from transformers import BertConfig, BertModel

        super().__init__()
        config = BertConfig(
            vocab_size=WORDS, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
            max_position_embeddings=64, hidden_dropout_prob=0.2,
        )  # fmt: skip
        self.bert = BertModel(config, add_pooling_layer=False)
        self.scores = nn.Linear(64, len(PACKAGES))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return scores [batch, 4] of words [batch, length], of which the mask says which are there."""
        states = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        there = attention_mask[..., None].to(states.dtype)
        scores: torch.Tensor = self.scores((states * there).sum(1) / there.sum(1))
        return scores


def sentences(package: str) -> Iterator[tuple[str, str]]:
    """Yield (file, sentence) of docstrings of an installed package, files in a mixed order; its code is parsed, and not run."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise EnvironmentProblem(f"the recipe reads the documentation of {package}", "pip install 'halfconv[recipes]'")
    folder = Path(spec.origin).parent
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.py")}
    for name, path in sorted(files.items(), key=lambda file: (zlib.crc32(file[0].encode()), file[0])):
        if "test" in name or "vendor" in name or "extern" in name:
            continue
        try:
            tree = ast.parse(path.read_text("utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)):
                continue
            for paragraph in (ast.get_docstring(node) or "").split("\n\n"):
                text = " ".join(paragraph.split())
                if re.fullmatch(r"[A-Z][^|>=]{40,300}\.", text):
                    yield f"{package}/{name}", text.partition(". ")[0]


def encoded(text: str) -> list[int]:
    """Return a sentence's words as numbers from 2, by a digest of each; 1 stands for the package's own name."""
    words = re.findall(r"[a-z]+|[0-9]", NAMES.sub("", text.lower()))
    return [1, *(2 + zlib.crc32(word.encode()) % (WORDS - 2) for word in words[: LENGTH - 1])]


def documentation(fold: int) -> tuple[Split, Split]:
    """Return sentences of most files, and of the others: those of one file are all on one side."""
    seen: set[tuple[int, ...]] = set()
    rows: list[tuple[bool, int, list[int]]] = []
    for label, package in enumerate(PACKAGES):
        count = 0
        for file, text in sentences(package):
            words = encoded(text)
            if len(words) > 6 and tuple(words) not in seen:
                seen.add(tuple(words))
                rows.append((zlib.crc32(b"held out?" + file.encode()) % 100 < HELD_OUT, label, words))
                count += 1
            if count == SENTENCES:
                break
    parts = []
    for held in (False, True):
        chosen = [(label, words) for side, label, words in rows if side == held]
        ids = np.array([words + [0] * (LENGTH - len(words)) for _, words in chosen], np.int64)
        inputs = {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64)}
        parts.append(Split(inputs, {"labels": np.array([label for label, _ in chosen], np.int64)}))
    return parts[0], parts[1]


def words_dropped(part: Split, random: np.random.Generator) -> Split:
    """Replace a tenth of the words by a number that stands for any."""
    ids = part.inputs["input_ids"]
    inputs: dict[str, Any] = {**part.inputs, "input_ids": np.where((ids > 1) & (random.random(ids.shape) < 0.1), 1, ids)}
    return Split(inputs, part.labels)


RECIPE = Recipe(
    title=f"which of {', '.join(PACKAGES)} a sentence documents",
    source="docstrings of the installed packages, so that other versions of them give other sentences",
    derived="",
    data=documentation,
    model=Classifier,
    loss=nn.functional.cross_entropy,
    metric=accuracy,
    metric_name="accuracy",
    threshold=0.6,
    outputs=("logits",),
    epochs=8,
    batch=64,
    learning_rate=1e-3,
    dims={"input_ids": {1: "length"}, "attention_mask": {1: "length"}},
    augment=words_dropped,
)
