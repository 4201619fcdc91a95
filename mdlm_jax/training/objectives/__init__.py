"""Objectives: from clean rows and a key to `LossParts`.

An objective draws the noise level and the noise, runs the network and reduces its prediction to nats per token. It is a
frozen dataclass; parameters come in as a tree, so one trainer runs them all. All noise belongs to (key, row index):
microbatches, hosts and restarts change nothing. (Dropout belongs to the key and the microbatch.)
"""
