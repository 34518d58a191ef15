"""AdaMatch and AdaMatch-Cyclic on Ray: chest X-rays and reports aligned, explained and generated."""

__version__ = "0.1.0"
