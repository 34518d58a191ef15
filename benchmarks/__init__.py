"""The project's parts against named peers, in the same run: `python -m benchmarks NAME`."""
