"""HTTP server: `alexnet serve`."""
