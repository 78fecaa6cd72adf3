"""``medsegmamba-train``: train networks on synthesised images or on pairs of images and labels."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from medsegmamba_bids import __version__


def build_parser() -> argparse.ArgumentParser:
    """The parser; imports neither torch nor nipype."""
    parser = argparse.ArgumentParser(
        prog="medsegmamba-train",
        description="Train a segmentation network and write it as a weights file.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    synthetic = commands.add_parser(
        "synthetic", help="train on images synthesised from label maps", description=train_synthetic.__doc__
    )
    synthetic.add_argument("config", help="TOML file, or the name of a configuration of the package")
    synthetic.add_argument("--data-dir", type=Path, required=True, help="folder that the label maps are relative to")
    synthetic.add_argument("--out", type=Path, required=True, help="folder of the checkpoint and the log")
    synthetic.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    synthetic.add_argument("--weights-out", type=Path, help="weights file to write at the end (.safetensors)")
    synthetic.add_argument("--threads", type=int, help="CPU threads (default: all)")
    synthetic.set_defaults(run=train_synthetic)
    return parser


def train_synthetic(options: argparse.Namespace) -> None:
    """Train on images synthesised from label maps; run again to resume from the last checkpoint."""
    import torch

    from medsegmamba_bids.data import data_path
    from medsegmamba_bids.inference.device import choose_device
    from medsegmamba_bids.networks.memory import keep_freed_memory
    from medsegmamba_bids.training.config import read_synthesis_config
    from medsegmamba_bids.training.synthesis import load_tissue_table
    from medsegmamba_bids.training.synthetic import Trainer, load_sources

    keep_freed_memory()
    path = Path(options.config)
    config = read_synthesis_config(path if path.suffix else data_path(f"training/{path.name}.toml"))
    if options.threads:
        torch.set_num_threads(options.threads)
    tissues = load_tissue_table(config.tissues)
    maps = load_sources(config, options.data_dir, options.out / "maps", tissues)
    trainer = Trainer(config, maps, tissues, options.out, choose_device(options.device))
    trainer.run()


def main(args: list[str] | None = None) -> int:
    """Runs a command; 0 when it succeeded, 2 for an input that was refused."""
    options = build_parser().parse_args(args)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        options.run(options)
    except (ValueError, OSError) as error:
        print(f"medsegmamba-train: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
