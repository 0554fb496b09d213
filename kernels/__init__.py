"""CUDA C++ sources of the device engine, installed as ``gpudedup.kernels``."""
