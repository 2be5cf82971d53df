"""Serves the embedded corpus on loopback and audits the embedded model with it.

reads   the package simple-icons-pack, demo/models
writes  the site (--site), and a lake as 'eidetic audit' does

Everything is real: a web server, LAION's columns, img2dataset, a CLIP model, a diffusion model that was trained on this
corpus and has remembered what was repeated. The options are those of 'eidetic audit' and begin with demo/demo.toml.

With --sweep FILE the corpus' pictures, each once, are what small models are trained on and attacked ('eidetic sweep').

  eidetic demo --lake lake
  eidetic demo --lake sweep_lake --sweep demo/sweeps/small.toml
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.resources
import sys
from collections.abc import Sequence
from pathlib import Path

from pipelines import audit, sweep
from pipelines.execution import say
from pipelines.options import Options, option, parse
from pipelines.stages import alone_with


@dataclasses.dataclass(frozen=True)
class DemoOptions(Options):
    """The embedded default: corpus and server."""

    site: str = option("build/demo_site", "where the corpus is written that is served")
    port: int = option(18181, "of the server on 127.0.0.1; part of the URLs, and so of every sample's identity")
    scale: float = option(1.0, "share of the corpus, over 0 to 1: for quick looks and tests", over=0, most=1)


def main(argv: Sequence[str]) -> None:
    from demo import corpus
    from demo.serve import serving

    folder = importlib.resources.files("demo")
    if any(word.split("=")[0] == "--sweep" for word in argv):
        with importlib.resources.as_file(folder / "models") as models:
            _sweep(argv, models)
        return
    with importlib.resources.as_file(folder / "demo.toml") as config, importlib.resources.as_file(folder / "models") as models:
        words = list(argv) if any(word.startswith("--config") for word in argv) else ["--config", str(config), *argv]
        site = _site(argv)
        places = [
            f"--metadata={site}/metadata.parquet",
            f"--controls={site}/controls.parquet",
            f"--model={models}/generator",
            f"--clip_model={models}/clip",
        ]
        parsed = parse([*places, *words], "demo", __doc__, (DemoOptions, *audit.options()))
        options = parsed[DemoOptions]
        root = Path(options.site)
        say(f"corpus       {root}, served at http://127.0.0.1:{options.port}")
        if parsed[audit.AuditOptions].plan:
            corpus.build(root, f"http://127.0.0.1:{options.port}", options.scale)
            audit.run_parsed(parsed)
            return
        with alone_with(parsed, "demo"):
            corpus.build(root, f"http://127.0.0.1:{options.port}", options.scale)
            with serving(root, options.port):
                audit.run_parsed(parsed)


def _sweep(argv: Sequence[str], models: Path) -> None:
    """A sweep over the corpus' pictures: nothing need be served, they lie in Parquet."""
    from demo import corpus

    path = Path(_site(argv)) / "pictures.parquet"
    stored = ["--source=parquet", "--image_size=64", "--resize_mode=no", "--encode_format=png"]
    words = [f"--metadata={path}", f"--clip_model={models}/clip", "--clip_pretrained=", *stored, *argv]
    parsed = parse(words, "demo", __doc__, (DemoOptions, *sweep.options()))
    with alone_with(parsed, "demo"):
        corpus.write_pictures(path, parsed[DemoOptions].scale)
        sweep.run_parsed(parsed)


def _site(argv: Sequence[str]) -> str:
    """--site, read ahead of the rest: where the metadata lies follows from it."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--site", default=DemoOptions.site)
    return parser.parse_known_args(list(argv))[0].site


if __name__ == "__main__":
    from pipelines.cli import leave, run_verb

    leave(run_verb(main, sys.argv[1:]))
