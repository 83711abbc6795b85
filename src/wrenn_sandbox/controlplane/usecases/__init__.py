"""What callers can do, one function each: checks, the row that states the intent, then the host agent."""
