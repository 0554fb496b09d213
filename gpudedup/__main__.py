"""``python -m gpudedup``: the command line."""

from gpudedup.cli import main

main()
