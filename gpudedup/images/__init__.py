"""Where pages come from: one module per format."""
