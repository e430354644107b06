import os
import sys
from pathlib import Path

# Tests neither use the network nor leave runs anywhere but in their own folders.
os.environ["WANDB_MODE"] = "offline"
os.environ["HF_HUB_OFFLINE"] = "1"
# Numba's OpenMP layer raises the number of threads of the whole process, and torch crawls with more than cores.
os.environ["NUMBA_THREADING_LAYER"] = "workqueue"
# Where `make install` puts Zoobot, as something to compare with; last, so that it hides nothing.
sys.path.append(str(Path(__file__).parents[1] / ".venv" / "oracle"))
