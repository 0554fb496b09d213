"""The books: arrays of pages and frames, and the smallest steps that keep them true."""
