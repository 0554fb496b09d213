"""Which pages are the same: inputs become one population, an engine splits it, a result tells."""
