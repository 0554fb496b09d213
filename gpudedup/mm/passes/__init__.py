"""The compiled passes: each does one operation to many pages."""
