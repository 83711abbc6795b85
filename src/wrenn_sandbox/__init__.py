"""Wrenn Sandbox: untrusted code in microVMs made in a fraction of a second from memory snapshots."""

__version__ = "0.1.0.dev0"
