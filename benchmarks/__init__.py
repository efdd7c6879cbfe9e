"""How long things take, beside other packages that do the same: `python -m benchmarks.run NAME`."""
