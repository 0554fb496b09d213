"""Who does the bulk work on page bytes."""
