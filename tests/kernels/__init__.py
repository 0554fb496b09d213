"""The CUDA sources, run on the CPU under a shim and held to what they promise."""
