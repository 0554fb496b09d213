"""CUDA kernels of the scan engine and of page tables, run and checked on the CPU under a shim."""
