"""The device engine: pages are staged, digested, grouped and compared on one device or several."""
