"""One module per fixture file; `make()` writes it."""
