from __future__ import annotations

import os

import pytest

from wrenn_sandbox.vmm.log import LOG_BYTES, found_log, new_log


def test_what_was_written_is_read_and_no_more() -> None:
    with new_log("test") as log:
        assert log.text() == ""
        os.write(log.fd, b"one\n")
        os.write(log.fd, b"two \xff\n")
        assert log.text() == "one\ntwo \ufffd\n"


def test_it_never_grows() -> None:
    with new_log("test") as log:
        assert os.write(log.fd, b"x" * (LOG_BYTES - 1)) == LOG_BYTES - 1
        os.write(log.fd, b"yz"[:1])
        with pytest.raises(PermissionError):
            os.write(log.fd, b"more")
        with pytest.raises(PermissionError):
            os.ftruncate(log.fd, LOG_BYTES + 1)
        assert len(log.text()) == LOG_BYTES


def test_another_agent_finds_it_and_keeps_it() -> None:
    with new_log("test") as log:
        os.write(log.fd, b"panic\n")
        with found_log(os.getpid(), log.fd) as found:
            os.lseek(log.fd, 0, os.SEEK_SET)
            assert found.text() == "panic\n"


def test_one_that_is_lost_is_empty() -> None:
    with found_log(os.getpid(), 9999) as found:
        assert found.text() == ""
