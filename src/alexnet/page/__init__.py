"""The web page of a run: one source for `alexnet serve` and `alexnet export --page`, which differ in `backend.js` alone."""
