"""Experiments, each a package that is run by `python -m experiments.<name>.<script>`."""
