"""Set-up of logs, metrics and tracing; nothing here is about what is logged."""
