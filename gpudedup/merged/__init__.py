"""Images whose equal pages are kept once: merged dumps are made, opened, proved and restored."""
