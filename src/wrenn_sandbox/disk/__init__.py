"""Disks of sandboxes: overlays on templates."""
