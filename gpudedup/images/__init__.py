"""Images: rows of pages from files of any format, and from arrays."""
