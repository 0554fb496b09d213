"""A stand-in for CUDA: g++ compiles the very same sources, threads of a block are fibers."""
