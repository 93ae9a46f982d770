"""Labelled and unlabelled data: an autoencoder's warm-up, and pseudo-labels of a teacher that is an average of the student.

`warm_up` trains an encoder to keep what a decoder needs to restore inputs, which takes no labels (Vincent et al., *Extracting and
Composing Robust Features with Denoising Autoencoders*, ICML 2008). `fit_semi` then trains on both kinds of data: the teacher, an
exponential moving average of the student's weights (Tarvainen and Valpola, *Mean teachers are better role models*, NeurIPS 2017),
labels the unlabelled inputs; where it is confident, the student learns these labels from inputs that are altered strongly (Lee,
*Pseudo-Label*, ICML 2013 workshop; Sohn et al., *FixMatch*, NeurIPS 2020). Both run in any precision of `halfconv.train.fit`.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.nn.functional import cross_entropy, mse_loss

from halfconv.errors import UsageError
from halfconv.train.batches import Batch, Data
from halfconv.train.loop import fit
from halfconv.train.policy import PrecisionPolicy, policy_named
from halfconv.train.result import Result
from halfconv.train.run import Evaluate

__all__ = ["Inputs", "fit_semi", "warm_up"]

Inputs = Iterable[torch.Tensor] | Callable[[int], Iterable[torch.Tensor]]
Change = Callable[[torch.Tensor], torch.Tensor]


def warm_up(
    encoder: torch.nn.Module, decoder: torch.nn.Module, data: Inputs, *, corrupt: Change | None = None, **options: Any
) -> Result:
    """Train an encoder, in place, so that a decoder can restore its inputs.

    Args:
        encoder: The part of a model that is to be trained.
        decoder: Makes inputs again, of the same shape, from what the encoder returns.
        data: Batches of inputs without labels, FP32; or a function that returns those of an epoch.
        corrupt: Alters the inputs that the encoder sees, such as by noise; None leaves them as they are.
        options: Further arguments of `halfconv.train.fit`, such as ``epochs`` and ``precision``.

    Returns:
        What `halfconv.train.fit` returns; the loss is the mean squared error.

    Raises:
        HalfconvError: As for `halfconv.train.fit`.
    """

    def batches(epoch: int) -> Iterator[Batch]:
        for inputs in data(epoch) if callable(data) else data:
            yield (corrupt(inputs) if corrupt else inputs), inputs

    return fit(torch.nn.Sequential(encoder, decoder), batches, loss=mse_loss, **options)


def fit_semi(
    model: torch.nn.Module,
    labelled: Data,
    unlabelled: Inputs,
    *,
    strong: Change,
    weak: Change | None = None,
    threshold: float = 0.95,
    weight: float = 1.0,
    decay: float = 0.99,
    evaluate: Evaluate | None = None,
    precision_policy: PrecisionPolicy | str | None = None,
    **options: Any,
) -> Result:
    """Train a classifier, in place, on labelled batches and on pseudo-labels of unlabelled ones.

    Each step takes one batch of both; an epoch goes through the unlabelled data once, and through the labelled as often as that
    needs. At the end the model has the teacher's weights.

    Args:
        model: Returns logits of shape (batch, classes) from one tensor of inputs.
        labelled: (inputs, class numbers) batches, or a function that returns those of an epoch.
        unlabelled: Batches of inputs, or a function that returns those of an epoch.
        strong: Alters the inputs that the student learns pseudo-labels from.
        weak: Alters labelled inputs and those that the teacher labels; None leaves them as they are.
        threshold: The probability that a pseudo-label needs, from 0 to 1.
        weight: The share of the pseudo-labels' loss, against 1 for that of the labels.
        decay: How much of the teacher remains in an update, below 1; less at first, when it has seen few.
        evaluate: As for `halfconv.train.fit`; called with the teacher.
        precision_policy: As for `halfconv.train.fit`, with the names of the model's modules; for student and teacher. Moves bear
            the student's names, ``student.NAME``.
        options: Further arguments of `halfconv.train.fit` but ``loss`` and ``after_step``.

    Returns:
        What `halfconv.train.fit` returns. The metrics have ``confident``, too: the share of unlabelled inputs of the last epoch
        whose pseudo-label was used.

    Raises:
        UsageError: A share is out of range, or there are no labelled batches.
        HalfconvError: As for `halfconv.train.fit`.
    """
    if not 0 <= threshold <= 1 or not 0 <= decay < 1 or weight < 0:
        raise UsageError("threshold is from 0 to 1, decay from 0 to below 1, weight at least 0", "the defaults")
    both = _StudentAndTeacher(model, strong, weak, decay)
    used: list[torch.Tensor] = []

    def batches(epoch: int) -> Iterator[Batch]:
        used.clear()
        again = _endless(labelled, epoch)
        for inputs in unlabelled(epoch) if callable(unlabelled) else unlabelled:
            known, labels = next(again)
            yield (known, inputs), labels

    def loss(output: tuple[torch.Tensor, ...], labels: torch.Tensor) -> torch.Tensor:
        known, guessed, teacher = output
        confidence, pseudo = teacher.softmax(-1).max(-1)
        confident = (confidence >= threshold).to(guessed.dtype)
        used.append(confident)
        unsupervised = (cross_entropy(guessed, pseudo, reduction="none") * confident).mean()
        return cross_entropy(known, labels) + weight * unsupervised

    def measured(_: torch.nn.Module) -> dict[str, float]:
        share = float(torch.cat(used).float().mean()) if used else float("nan")
        return {**(evaluate(both.teacher) if evaluate else {}), "confident": share}

    plan = _for_both(precision_policy)
    result = fit(both, batches, loss=loss, evaluate=measured, precision_policy=plan, after_step=_average, **options)
    model.load_state_dict(both.teacher.state_dict())
    return result


class _StudentAndTeacher(torch.nn.Module):
    """A model and the moving average of its weights, as one module, so that a checkpoint holds both."""

    updates: torch.Tensor

    def __init__(self, student: torch.nn.Module, strong: Change, weak: Change | None, decay: float):
        super().__init__()
        self.student, self.teacher = student, copy.deepcopy(student).requires_grad_(False)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self._strong, self._weak, self._decay = strong, weak or (lambda inputs: inputs), decay

    def train(self, mode: bool = True) -> _StudentAndTeacher:
        """Set the student's mode; the teacher always evaluates."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, known: torch.Tensor, unknown: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the student's logits of labelled and of altered unlabelled inputs, and the teacher's of the latter."""
        with torch.no_grad():
            teacher = self.teacher(self._weak(unknown))
        logits = self.student(torch.cat([self._weak(known), self._strong(unknown)]))
        return logits[: len(known)], logits[len(known) :], teacher

    @torch.no_grad()
    def average(self) -> None:
        """Move the teacher toward the student."""
        self.updates += 1
        count = int(self.updates)
        decay = min(self._decay, count / (count + 9))
        for mean, now in zip(self.teacher.state_dict().values(), self.student.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(now, 1 - decay)
            else:
                mean.copy_(now)


def _average(both: torch.nn.Module) -> None:
    assert isinstance(both, _StudentAndTeacher)
    both.average()


def _endless(data: Data, epoch: int) -> Iterator[Batch]:
    """Yield the batches of an epoch again and again, a function's as those of epochs of its own."""
    for turn in itertools.count():
        empty = True
        for batch in data(epoch + turn) if callable(data) else data:
            empty = False
            yield batch
        if empty:
            raise UsageError("there are no labelled batches", "a list, a DataLoader, or a function of the epoch")


def _for_both(policy: PrecisionPolicy | str | None) -> PrecisionPolicy | None:
    """Return a policy whose expressions find the modules of student and teacher."""
    if policy is None:
        return None
    plain = policy_named(policy)
    return dataclasses.replace(plain, fp32=tuple(rf"(?:student|teacher)\.(?:{pattern})" for pattern in plain.fp32))
