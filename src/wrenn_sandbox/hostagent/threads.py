"""Blocking work in a thread that its caller does not outlive; ``vmm.cancels`` says why and how."""

from __future__ import annotations

from wrenn_sandbox.vmm.cancels import in_thread

__all__ = ["in_thread"]
