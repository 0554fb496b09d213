"""Devices: the protocol that engines and the memory manager work by, and who implements it."""
