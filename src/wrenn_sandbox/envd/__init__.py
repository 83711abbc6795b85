"""The guest daemon: processes, files and ports of one sandbox, over HTTP and Connect."""
