"""Reports of results: text, JSON records, tables in files and plots."""
