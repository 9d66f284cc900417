"""The network: `variants` says what it is, `alexnet` builds it."""
