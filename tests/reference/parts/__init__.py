"""One module a fixture file; each has `make()`, which writes it."""
