"""The steps of long operations on a host. Steps do not import each other."""
