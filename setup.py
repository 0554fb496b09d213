"""List the packages; all other metadata are in pyproject.toml.

``gpudedup.kernels`` lies in kernels/, where CUDA's tools look for it. In a checkout
gpudedup/kernels is a link to it; a source distribution has no links, so it is named here.
"""

from setuptools import find_packages, setup

setup(
    packages=sorted({*find_packages(include=["gpudedup", "gpudedup.*"]), "gpudedup.kernels"}),
    package_dir={"gpudedup.kernels": "kernels"},
)
