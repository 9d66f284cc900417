"""The network: variants.py defines the architectures, alexnet.py builds them."""
