"""Servers that listen on the guest's loopback, made reachable at the guest's address."""
