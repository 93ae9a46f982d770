"""The exceptions that halfconv raises on purpose.

    HalfconvError
    ├── InputError             the model file or another input cannot be used          exit 2
    │   └── UnsupportedModel   the file is a valid model that halfconv cannot convert  exit 2
    ├── UsageError             an option is wrong or matches nothing                   exit 2
    ├── EnvironmentProblem     a runtime, a package or the disk is missing             exit 2
    ├── RunStopped             a run passed its deadline, or was cancelled             exit 2
    ├── PoolFull               a pool's queue has no room for another request          exit 2
    └── CheckFailed            the converted model did not pass its checks             exit 1

``ProfileWarning`` is no error: a run profile is missing or foreign, and the defaults are used.
Every message is one line: what was found, where, and what to do (``try: …``).
This module imports nothing, so that the runtime can be shipped alone.
"""

__all__ = [
    "CheckFailed",
    "EnvironmentProblem",
    "HalfconvError",
    "InputError",
    "PoolFull",
    "ProfileWarning",
    "RunStopped",
    "UnsupportedModel",
    "UsageError",
]


class HalfconvError(Exception):
    """Base of all errors that halfconv raises on purpose.

    Attributes:
        exit_code: The command line's exit code for this kind of error.
    """

    exit_code = 2

    def __init__(self, found: str, advice: str = ""):
        """Build the one-line message.

        Args:
            found: What was found, and where.
            advice: What to do about it; shown after ``try:``.
        """
        message = " ".join(found.split())
        if advice:
            message = f"{message}; try: {' '.join(advice.split())}"
        super().__init__(message)


class InputError(HalfconvError):
    """The model file, or another input file, cannot be used."""


class UnsupportedModel(InputError):
    """The file is a valid model, but halfconv cannot convert it."""


class UsageError(HalfconvError):
    """An option is wrong, contradicts another, or matches nothing."""


class EnvironmentProblem(HalfconvError):
    """A runtime or package is missing, or the disk refuses the output."""


class RunStopped(HalfconvError):
    """A run passed its deadline, or was cancelled; its result, if there was one, is lost."""


class PoolFull(HalfconvError):
    """A pool's queue has no room for another request."""


class CheckFailed(HalfconvError):
    """The converted model did not pass its checks; no output is left.

    Attributes:
        study: What is known of it (`halfconv.result.FailedConvert`), for a report; None if nothing is.
    """

    exit_code = 1

    def __init__(self, found: str, advice: str = "", study: object = None):
        """Build the one-line message; see `HalfconvError`.

        Args:
            found: What was found, and where.
            advice: What to do about it.
            study: What is known of the model that failed.
        """
        super().__init__(found, advice)
        self.study = study


class ProfileWarning(UserWarning):
    """A model's run profile is missing or belongs to another file, so the model runs with defaults."""
