import sys
from pathlib import Path

# benchmarks/recovery.py finds its package beside itself.
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
