"""Scan engines: digest, group and compare page bytes."""
