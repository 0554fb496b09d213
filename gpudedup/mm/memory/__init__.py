"""The bytes of frames: pools on the host and on devices, and the page tables of devices."""
