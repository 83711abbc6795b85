"""QEMU as the VMM: command line, control protocol, machines."""
