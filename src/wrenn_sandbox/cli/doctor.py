"""``wrenn doctor``: what this machine can do, and what stands in the way."""

from __future__ import annotations
