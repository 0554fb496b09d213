"""The offload engine: stage, digest, group and compare pages on one or several devices."""
