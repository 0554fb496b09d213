"""Scans: inputs become one population, an engine partitions it, a result counts."""
