"""Guest artefacts: built from Debian packages, named by content hash, rebuilt only when their inputs change."""
