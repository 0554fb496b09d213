"""Devices: the protocol of the offload engine and the memory manager, and implementations."""
