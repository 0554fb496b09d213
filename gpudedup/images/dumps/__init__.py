"""Read and write dumps, plain or merged: the Arrow files of :mod:`gpudedup.schema`."""
