"""The CPU engine: all cores, compiled passes, files mapped or read."""
