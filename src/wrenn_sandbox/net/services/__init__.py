"""What every sandbox finds at its gateway address: time and names. The sockets live in the slot's own namespace."""
