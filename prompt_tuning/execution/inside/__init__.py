"""Runs as `python inside/`, apart from the package, around one program."""
