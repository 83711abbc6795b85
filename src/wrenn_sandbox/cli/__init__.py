"""The ``wrenn`` command: runs the platform on one machine, and is a client of it."""
