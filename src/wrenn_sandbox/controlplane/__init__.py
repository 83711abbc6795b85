"""The control plane: accounts, sandboxes as rows, the API, the reconciler and the port proxy. Holds no VM state."""
