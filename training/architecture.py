VAE = {"base_dim": 8, "z_dim": 16, "dim_mult": [1, 4, 8, 12], "num_res_blocks": 1}
