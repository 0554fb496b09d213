"""The memory manager: frames, mappings, aliases, protections, and every path to a page."""
