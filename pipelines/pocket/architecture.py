"""Every size of the pocket checkpoint, in one table. Knows nothing of weights.

The classes, the folder layout and the sizes that the code depends on (patches of 2 and 14, a merge of 2,
16 latent channels, their mean and deviation, the solver) are those of Qwen/Qwen-Image-Edit-2509; widths
and depths are what fits into a few megabytes.
"""

from typing import Any

Config = dict[str, Any]

_TEXT_WIDTH = 64

TRANSFORMER: Config = {
    "patch_size": 2,
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 4,
    "attention_head_dim": 32,
    "num_attention_heads": 6,
    "joint_attention_dim": _TEXT_WIDTH,
    "axes_dims_rope": (8, 12, 12),
    "zero_cond_t": True,  # as in the 2511 release: references are read as clean pictures at every step
}

VAE: Config = {"base_dim": 12, "z_dim": 16, "dim_mult": [1, 3, 6, 8], "num_res_blocks": 1}

TEXT: Config = {
    "hidden_size": _TEXT_WIDTH,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
}

VISION: Config = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "out_hidden_size": _TEXT_WIDTH,
    "fullatt_block_indexes": [1],
}

IMAGE_PROCESSOR: Config = {"size": {"shortest_edge": 56 * 56, "longest_edge": 12_845_056}}

SOLVER: Config = {
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 8192,
    "max_shift": 0.9,
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "shift_terminal": 0.02,
    "time_shift_type": "exponential",
    "use_dynamic_shifting": True,
}
