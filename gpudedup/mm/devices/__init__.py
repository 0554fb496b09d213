"""Devices of a memory manager: pools in their memory, page tables of their own, their accesses."""
