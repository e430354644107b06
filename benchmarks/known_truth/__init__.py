"""Parts of benchmarks/recovery.py: surveys whose rare classes are known, and methods that look for them."""
