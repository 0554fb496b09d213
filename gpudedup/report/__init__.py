"""How a result is told: as text, as JSON, as tables in files."""
