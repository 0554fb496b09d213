"""Who shares what: frames, mappings, aliases, protections, and every path that reaches a page."""
