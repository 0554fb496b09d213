"""Make, open, verify and restore merged dumps: images whose equal pages are stored once."""
