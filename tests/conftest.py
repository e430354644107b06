import os

# Tests neither use the network nor leave runs anywhere but in their own folders.
os.environ["WANDB_MODE"] = "offline"
os.environ["HF_HUB_OFFLINE"] = "1"
