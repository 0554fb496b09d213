"""Capture running processes, stop them, or watch their writes."""
