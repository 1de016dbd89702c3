"""What logs say of progress."""

import pytest

from lustral.shell.terminal import Log


def test_steps_that_do_not_add_up_to_the_bit_leave_no_negative_time(capsys: pytest.CaptureFixture):
    with Log() as log:
        task = log.add_task("steps", total=3.3)
        for _ in range(3):
            log.advance(task, 1.1)  # 1.1 + 1.1 + 1.1 > 3.3
    assert capsys.readouterr().err.splitlines()[-1].strip() == "100% steps, 0 s, 0 s left"
