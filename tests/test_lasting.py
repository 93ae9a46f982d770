"""The process of the runtime that tests share: kept while it lives, replaced when it ended, and closed for who closed it."""

from __future__ import annotations

import pytest

from halfconv.errors import InputError
from halfconv.runtime.session_server import CPU, LEVELS
from halfconv.runtime_process import RuntimeProcess
from tests.lasting import lasting_runtime
from tests.runtime import models


def test_a_process_is_kept_until_it_ends() -> None:
    with lasting_runtime():
        with RuntimeProcess() as first:
            one = first._child.process
            session = first.open(models.squares(), LEVELS[0], CPU)
        with pytest.raises(InputError, match="was ended"):
            first.call(first._child, "close", session._number)
        with RuntimeProcess() as second, RuntimeProcess() as third:
            assert second._child.process is one
            other = third._child.process
            assert other is not one
            with pytest.raises(InputError):
                session.run(["y"], {})  # it ended with the process that it was opened in
            one.kill()
            with pytest.raises(InputError, match="SIGKILL"):
                second.open(models.squares(), LEVELS[0], CPU)
        with RuntimeProcess() as fourth:
            assert fourth._child.process is other
    assert one.poll() is not None and other.poll() is not None
    with RuntimeProcess() as own:
        assert own._child.process not in (one, other)
