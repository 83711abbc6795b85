"""What each finding becomes in the report."""

from __future__ import annotations

from wrenn_sandbox.cli import doctor
from wrenn_sandbox.cli.doctor import Severity
from wrenn_sandbox.net import conflicts
from wrenn_sandbox.vmm.probe import Attempt, Verdict


def test_who_may_run_sandboxes() -> None:
    assert doctor.privileges(0).severity is Severity.OK
    assert "sudo" in doctor.privileges(1000).text


def test_a_finding_keeps_its_slug_and_severity() -> None:
    line = doctor.network_line(conflicts.Finding("no_uplink", "No route.", conflicts.Severity.WARNING))
    assert (line.severity, line.text) == (Severity.WARNING, "No route. [no_uplink]")


def test_emulation_is_said_plainly_with_every_attempt() -> None:
    attempt = Attempt("kvm", "Haswell", False, "The guest hangs.", 10.0)
    first, second = doctor.accelerator_lines(Verdict("tcg", "max", "The guest hangs.", (attempt,), 10.2))
    assert first.severity is Severity.WARNING
    assert "emulated" in first.text
    assert "kvm/Haswell: The guest hangs." in second.text


def test_kvm_is_fine() -> None:
    (line,) = doctor.accelerator_lines(Verdict("kvm", "Haswell", "A guest booted under KVM.", cached=True))
    assert line.severity is Severity.OK
    assert "found earlier" in line.text


def test_room() -> None:
    assert [line.severity for line in doctor.space(10_000, 8000)] == [Severity.OK, Severity.OK]
    assert [line.severity for line in doctor.space(100, 100)] == [Severity.ERROR, Severity.WARNING]
