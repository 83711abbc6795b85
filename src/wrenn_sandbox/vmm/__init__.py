"""Virtual machine monitors: one protocol (``driver``), one module or package a VMM, and how a VMM is jailed."""
