"""Commands that people and CI run outside the pipeline."""

import argparse


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser that prints ``description``, a module's docstring, as it is."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
