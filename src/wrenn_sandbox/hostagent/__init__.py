"""The host agent: the process on a machine that runs sandboxes and knows the truth about them."""
