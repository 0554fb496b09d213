"""Dumps: the Arrow files of :mod:`gpudedup.schema`, plain or merged, read and written."""
