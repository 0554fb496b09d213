"""A stand-in for CUDA: g++ compiles the same sources, threads of a block are fibers."""
