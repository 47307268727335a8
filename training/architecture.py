VAE = {"base_dim": 12, "z_dim": 16, "dim_mult": [1, 3, 6, 8], "num_res_blocks": 1}
