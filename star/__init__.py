"""STAR: spatiotemporal adaptive reward allocation for text-to-image flow models, and the baselines it is compared with."""
