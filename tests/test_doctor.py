import torch

from star.config import load
from star.doctor import dry_run, memory
from star.shapes import AUTOENCODER, SD35_MEDIUM, TRANSFORMERS
from star.doctor.memory import needed

TINY_AUTOENCODER = {**AUTOENCODER, "block_out_channels": (8, 8, 8, 8), "norm_num_groups": 8, "layers_per_block": 1}
