"""Training: the Trainer with its parts, and the application behind the scripts in `examples/`."""
