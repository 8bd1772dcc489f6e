"""`python -m data_shards stats DIR`: what a build read, dropped and kept, as a table and as DIR/funnel.png."""

from __future__ import annotations

import argparse
from pathlib import Path

from data_shards import funnel
from data_shards.shards import STAGE
from job import manifest


def main(arguments: list[str]) -> int:
    """Print the funnel of a finished build and plot it beside its manifest."""
    parser = argparse.ArgumentParser(
        prog="python -m data_shards stats",
        description="Print what a build read, dropped (by reason) and kept per source, and plot it as funnel.png.",
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="output directory of a finished build")
    directory = parser.parse_args(arguments).directory
    funnels = manifest.read(directory, STAGE)["sources"]
    funnel.show(funnels)
    picture = directory / "funnel.png"
    funnel.plot(funnels, picture)
    print(f"wrote {picture}")
    return 0
