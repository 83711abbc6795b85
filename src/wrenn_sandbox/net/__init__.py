"""The network of sandboxes: namespaces, taps, firewall, a pool of warm slots, our services inside."""
