"""The state: arrays of pages and frames, and the smallest steps that keep their invariants."""
