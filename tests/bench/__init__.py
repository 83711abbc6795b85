"""`make bench`: measures the promises of SPECIFICATION.md on this machine, as ratios within one run."""
