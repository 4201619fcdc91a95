"""Mixtures of experts: who goes where (`routing`), the products (`grouped`), the layer and its sharding (`experts`)."""
