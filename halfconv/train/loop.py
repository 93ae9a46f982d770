"""`fit`: train a model on data in FP32 or half precision."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from halfconv.errors import UsageError
from halfconv.train.adaptive import Watcher
from halfconv.train.batches import Data
from halfconv.train.checkpoint import check_checkpoint_path, load_checkpoint
from halfconv.train.distributed import processes
from halfconv.train.log import Listener, listening, open_log
from halfconv.train.optimizer import adamw
from halfconv.train.policy import AdaptivePolicy, PrecisionPolicy, fp32_modules, policy_named
from halfconv.train.precision import check_precision, half_problem, precision_named, pure_half
from halfconv.train.result import Result
from halfconv.train.run import Evaluate, Run, Scheduler
from halfconv.train.scaling import LossScaler
from halfconv.train.step import Loss, Stepper

__all__ = ["fit"]

Optimizer = torch.optim.Optimizer


def fit(
    model: torch.nn.Module,
    data: Data,
    *,
    loss: Loss,
    optimizer: Callable[[Iterable[torch.nn.Parameter]], Optimizer] | None = None,
    scheduler: Callable[[Optimizer], Scheduler] | None = None,
    epochs: int = 1,
    precision: str = "fp32",
    device: str = "auto",
    evaluate: Evaluate | None = None,
    seed: int = 0,
    clip_norm: float | None = None,
    accumulate: int = 1,
    loss_scale: float | None = None,
    precision_policy: PrecisionPolicy | str | None = None,
    after_step: Callable[[torch.nn.Module], None] | None = None,
    checkpoint: Path | None = None,
    checkpoint_every: int | None = None,
    resume: bool = False,
    log_dir: Path | None = None,
    progress: bool | Listener = False,
) -> Result:
    """Train a model, in place.

    With ``fp16`` and ``bf16``, weights, their gradients and the optimizer's state are FP32 and autocast runs matrix products and
    convolutions in half; ``fp16`` scales the loss (see `halfconv.train.scaling`). ``pure-fp16`` holds everything in FP16 and scales
    nothing: it is there to show what goes wrong then.

    Started by ``torchrun``, each process takes its share of the batches (see `halfconv.train.batches.steps_of`); BatchNorm's
    statistics are those of the first process's share. Metrics, checkpoints and events come from the first process.

    The same seed and data give the same bits on the same machine and number of threads; on a GPU only if its kernels are
    deterministic (``torch.use_deterministic_algorithms``). The seeds of Python's, numpy's and torch's own generators are set.
    A run that was stopped and is resumed gives the same bits as one that was not, if the order of the data depends on nothing but
    the epoch and these generators, or a DataLoader's.

    Args:
        model: The model, with FP32 weights. It is moved to the device and stays there, in evaluation mode if it was so.
        data: (inputs, target) batches that can be iterated once per epoch, such as a list or a DataLoader; or a function that
            returns those of an epoch, the first of which is 0. Inputs are a tensor, a tuple for ``model(*inputs)`` or a dictionary
            for ``model(**inputs)``.
        loss: ``loss(output, target)``, a scalar: the mean over the batch. Outputs arrive in FP32, but for ``pure-fp16``.
        optimizer: Makes the optimizer of the weights that require a gradient; AdamW with a rate of 1e-3 by default,
            fused on a GPU.
        scheduler: Makes a learning rate scheduler of the optimizer; it is stepped after each step that updated the weights.
        epochs: How many times the data is gone through, those before a resume included.
        precision: ``fp32``, ``fp16``, ``bf16`` or ``pure-fp16``.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda`` or ``cuda:N``.
        evaluate: Called with the model after each epoch, in evaluation mode, without gradients, in the precision of the training;
            returns metrics by name.
        seed: For the order of the data, dropout and all else random from here on; the model's weights are there already.
        clip_norm: Scale all gradients down, after unscaling, so that their L2 norm together is at most this.
        accumulate: Batches per step; their gradients are averaged.
        loss_scale: A scale of the loss that stays, for ``fp16``; 1 scales nothing. None for one that adapts.
        precision_policy: Which modules stay FP32 in ``fp16`` and ``bf16``; ``adaptive`` finds out. No matter in ``fp32``.
        after_step: Called with the model after each step that updated its weights, as for averages of them.
        checkpoint: A file to keep the whole state in; written after each epoch.
        checkpoint_every: Write it after each so many steps, too.
        resume: Go on from ``checkpoint`` if that exists, else begin.
        log_dir: A folder for TensorBoard's event files; needs the package ``tensorboard``.
        progress: Show a bar on stderr if it is a terminal; or a function to tell instead.

    Returns:
        What happened.

    Raises:
        UsageError: An argument is wrong, the data is used up, or the checkpoint is from a run of another kind.
        InputError: The checkpoint cannot be read.
        EnvironmentProblem: The device, the precision on it, a package or disk space is missing.
    """
    mode, plan = precision_named(precision), policy_named(precision_policy)
    if epochs < 1 or accumulate < 1 or (checkpoint_every is not None and checkpoint_every < 1):
        raise UsageError("epochs, accumulate and checkpoint_every count from 1", "epochs=1")
    if seed < 0:
        raise UsageError(f"seed {seed} is negative", "seed=0")
    if (resume or checkpoint_every) and checkpoint is None:
        raise UsageError("resume and checkpoint_every need the file", 'checkpoint=Path("run.pt")')
    if loss_scale is not None and (not mode.scaled or not 0 < loss_scale < float("inf")):
        raise UsageError(f"loss_scale={loss_scale} with {precision}: only fp16 is scaled, by a positive number", "loss_scale=None")
    if precision_policy is not None and not mode.master:
        raise UsageError(f"{precision} leaves nothing in FP32 that a policy could keep there", 'precision="fp16"')
    if checkpoint is not None:
        check_checkpoint_path(checkpoint := Path(checkpoint))
    with processes(device) as shared, contextlib.ExitStack() as stack:
        check_precision(mode, shared.device, model)
        training = model.training
        stack.callback(model.train, training)
        model.to(shared.device)
        stack.enter_context(pure_half(model, mode))
        make = optimizer or adamw
        chosen = make([weight for weight in model.parameters() if weight.requires_grad])
        scaler = LossScaler(shared.device, enabled=mode.scaled, fixed=loss_scale)
        stepper = Stepper(shared.wrap(model), chosen, loss, mode, shared.device, scaler, clip_norm)
        kept, modules = set(plan.names(model)), dict(model.named_modules())
        watcher = None
        if mode.mixed:
            adaptive = isinstance(plan, AdaptivePolicy)
            movable = modules if adaptive else {name: modules[name] for name in kept}
            stack.enter_context(fp32_modules(movable, kept, shared.device))
            if isinstance(plan, AdaptivePolicy):
                watcher = Watcher(plan, modules, kept, stepper, shared)
                stack.enter_context(watcher.watching())
        run = Run(
            model, stepper, shared, seed=seed, accumulate=accumulate, scheduler=scheduler(chosen) if scheduler else None,
            watcher=watcher, evaluate=evaluate, after_step=after_step, checkpoint=checkpoint, checkpoint_every=checkpoint_every,
        )  # fmt: skip
        if checkpoint is not None and resume and shared.from_first(checkpoint.exists()):
            run.load(load_checkpoint(checkpoint, run.kind))
        log = stack.enter_context(open_log(log_dir if shared.first else None, run.step))
        tell = stack.enter_context(listening(progress, quiet=not shared.first))
        try:
            while run.epoch < epochs:
                run.train_epoch(data, epochs, log, tell)
        except RuntimeError as error:
            problem = half_problem(error, mode, shared.device)
            if problem is None:
                raise
            raise problem from error
        return run.result()
