"""The gateway: one port in front of several workers; torch-free."""
