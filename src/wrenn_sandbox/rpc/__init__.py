"""Messages between the processes: generated stubs (``gen``), and errors, deadlines and relaying over them."""
