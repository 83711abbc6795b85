"""The network of sandboxes: namespaces, taps, firewall, the pool that keeps slots warm, and our services inside them."""
