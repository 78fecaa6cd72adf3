"""``medsegmamba-train``: train networks on synthesised images or on pairs of images and labels."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from medsegmamba_bids.cli.common import add_command, make_parser, set_up_logging, user_errors
from medsegmamba_bids.errors import ConfigError


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser; imports neither torch nor nipype."""
    parser = make_parser("medsegmamba-train", "Train a segmentation network and write it as a weights file.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_synthetic(commands)
    _add_pairs(commands)
    _add_experiment(commands)
    _add_split(commands)
    _add_export(commands)
    return parser


_CONFIG = "TOML or YAML file, or the name of a configuration of the package"


def _add_running(command: argparse.ArgumentParser) -> None:
    """Add what both kinds of training take."""
    command.add_argument("config", metavar="CONFIG", help=_CONFIG)
    command.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of the checkpoint, the log and the cache"
    )
    _add_machine(command)
    command.add_argument(
        "--weights-out",
        type=Path,
        metavar="FILE",
        help="weights file (.safetensors) to write at the end (default: none)",
    )


def _add_machine(command: argparse.ArgumentParser) -> None:
    """Add on what it runs."""
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    command.add_argument("--threads", "--nthreads", type=int, metavar="N", help="CPU threads (default: all)")


def _add_synthetic(commands: argparse._SubParsersAction) -> None:
    text = "train on images synthesised from label maps"
    command = add_command(
        commands, "synthetic", text, train_synthetic, "Run it again to resume from the last checkpoint."
    )
    _add_running(command)
    command.add_argument(
        "--data-dir", type=Path, metavar="DIR", required=True, help="folder that the label maps are relative to"
    )
    _add_variation(command)


def _add_variation(command: argparse.ArgumentParser) -> None:
    """Add in what a training differs from its configuration."""
    command.add_argument(
        "--initial", metavar="WEIGHTS", help="weights file or name to begin with (default: the configuration's)"
    )
    command.add_argument(
        "--leave-out",
        nargs="+",
        action="extend",
        default=[],
        metavar="LABELS",
        help="label maps of [[sources]] to do without, as they are named there, to be judged on those (default: none)",
    )


def _add_pairs(commands: argparse._SubParsersAction) -> None:
    command = add_command(
        commands,
        "pairs",
        "train on images with FreeSurfer's labels, as the paper does",
        train_pairs,
        "Run it again to resume from the last checkpoint. For several GPUs start it with torchrun: "
        "torchrun --nproc-per-node 4 -m medsegmamba_bids.cli.train pairs ...",
    )
    _add_running(command)
    _add_pair_places(command)


def _add_pair_places(command: argparse.ArgumentParser) -> None:
    """Add where the images and labels are, and which set each participant is in."""
    data = command.add_mutually_exclusive_group(required=True)
    data.add_argument(
        "--subjects-dir",
        type=Path,
        metavar="DIR",
        help="FreeSurfer's folder of subjects (default: --bids-dir is given)",
    )
    data.add_argument(
        "--bids-dir",
        type=Path,
        metavar="DIR",
        help="BIDS dataset (default: --subjects-dir is given)",
    )
    command.add_argument(
        "--derivatives",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        metavar="DIR",
        help="BIDS derivatives with *_seg-aseg*_dseg label images (default: none)",
    )
    command.add_argument(
        "--split", type=Path, metavar="FILE", required=True, help="which participant is in which set (see split)"
    )


def _add_experiment(commands: argparse._SubParsersAction) -> None:
    command = add_command(
        commands,
        "experiment",
        "train several networks under equal conditions and compare them on the test set",
        experiment,
        "Trains each configuration on pairs, segments the test set with each and writes the tables of "
        "medsegmamba-evaluate. Run it again to resume; what is there already is not done again.",
    )
    command.add_argument("configs", nargs="+", metavar="CONFIG", help=_CONFIG)
    command.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        required=True,
        help="folder of the trainings, the weights, the segmentations and the tables",
    )
    _add_machine(command)
    _add_pair_places(command)
    command.add_argument(
        "--reference",
        type=Path,
        metavar="DIR",
        help="labels to compare with (default: the subjects or the first derivatives)",
    )
    command.add_argument(
        "--method",
        metavar="NAME=PLACE",
        action="append",
        default=[],
        help="other segmentations to compare; repeatable (default: none)",
    )
    command.add_argument(
        "--participants",
        type=Path,
        metavar="FILE",
        help="participants.tsv that says who is of which dataset (default: none)",
    )
    command.add_argument("--dataset-column", metavar="NAME", default="dataset", help="its column with the dataset")


def _add_split(commands: argparse._SubParsersAction) -> None:
    text = "divide participants 3:1:1 into training, validation and test, balanced by age and sex"
    command = add_command(commands, "split", text, split)
    command.add_argument("participants", type=Path, metavar="PARTICIPANTS", help="BIDS dataset or participants.tsv")
    command.add_argument("--out", type=Path, metavar="FILE", required=True, help="file to write, .tsv or .json")
    command.add_argument("--seed", type=int, metavar="N", default=0, help="of the random choices")
    command.add_argument("--age-column", metavar="NAME", default="age", help="column with ages in years")
    command.add_argument("--sex-column", metavar="NAME", default="sex", help="column with sexes")


def _add_export(commands: argparse._SubParsersAction) -> None:
    text = "write the weights file of a training as its last checkpoint stands"
    command = add_command(commands, "export", text, export)
    command.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="checkpoint, or the output folder that holds it"
    )
    command.add_argument(
        "config", metavar="CONFIG", help="the training's configuration; its [weights] table may have changed"
    )
    command.add_argument("--out", type=Path, metavar="FILE", required=True, help="weights file to write (.safetensors)")
    _add_variation(command)


def train_synthetic(options: argparse.Namespace) -> None:
    """Train on images synthesised from label maps."""
    import torch

    from medsegmamba_bids.inference.device import choose_device
    from medsegmamba_bids.networks.kernels.memory import keep_freed_memory
    from medsegmamba_bids.training.export import weights_info, write_weights
    from medsegmamba_bids.training.synthetic.sources import load_sources
    from medsegmamba_bids.training.synthetic.synthetic_trainer import Trainer, check_synthesis
    from medsegmamba_bids.training.synthetic.tissues import load_tissue_table
    from medsegmamba_bids.training.training_config import find_config, read_synthesis_config

    keep_freed_memory()
    config = read_synthesis_config(find_config(options.config))
    config = config.varied(options.initial, options.leave_out)
    check_synthesis(config)
    weights_info(config)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    tissues = load_tissue_table(config.tissues)
    maps = load_sources(config, options.data_dir, options.out / "maps", tissues)
    network = Trainer(config, maps, tissues, options.out, device).run()
    if options.weights_out:
        _announce(options.weights_out, write_weights(network, config, options.weights_out))


def train_pairs(options: argparse.Namespace) -> None:
    """Train on pairs; under torchrun in several processes."""
    import torch

    from medsegmamba_bids.networks.kernels.memory import keep_freed_memory
    from medsegmamba_bids.training.processes import join_processes, leave_processes

    keep_freed_memory()
    if options.threads:
        torch.set_num_threads(options.threads)
    processes = join_processes(options.device)
    try:
        _train_pairs(options, processes)
    finally:
        leave_processes()


def _train_pairs(options: argparse.Namespace, processes: object) -> None:
    from medsegmamba_bids.training.export import copy_weights, weights_info
    from medsegmamba_bids.training.pairs.pair_trainer import train_on_pairs
    from medsegmamba_bids.training.pairs.split import read_split
    from medsegmamba_bids.training.start import check_network
    from medsegmamba_bids.training.training_config import find_config, read_pairs_config

    config = read_pairs_config(find_config(options.config))
    check_network(config)
    info, split = weights_info(config), read_split(options.split)
    pairs = _find_pairs(options, config, list(split))
    best = train_on_pairs(config, pairs, split, options.out, options.out / "pairs", processes)
    if options.weights_out and processes.first:
        copy_weights(best, options.weights_out)
        _announce(options.weights_out, info)


def experiment(options: argparse.Namespace) -> None:
    """Train several networks, segment the test set with each, and compare."""
    import torch

    from medsegmamba_bids.networks.kernels.memory import keep_freed_memory
    from medsegmamba_bids.training.pairs.experiment import Tables, check_conditions, run_experiment
    from medsegmamba_bids.training.pairs.split import read_split
    from medsegmamba_bids.training.processes import join_processes
    from medsegmamba_bids.training.training_config import find_config, read_pairs_config

    keep_freed_memory()
    if options.threads:
        torch.set_num_threads(options.threads)
    configs = [read_pairs_config(find_config(config)) for config in options.configs]
    check_conditions(configs)
    split = read_split(options.split)
    pairs = _find_pairs(options, configs[0], list(split))
    reference = options.reference or options.subjects_dir or options.derivatives[0]
    tables = Tables(reference, tuple(options.method), options.participants, options.dataset_column)
    run_experiment(configs, pairs, split, options.out, tables, join_processes(options.device))


def _find_pairs(options: argparse.Namespace, config: object, participants: list[str]) -> list:
    from medsegmamba_bids.training.pairs.finder import find_bids_pairs, find_freesurfer_pairs

    if options.subjects_dir:
        return find_freesurfer_pairs(options.subjects_dir, config, participants)
    return find_bids_pairs(options.bids_dir, options.derivatives, config, participants)


def split(options: argparse.Namespace) -> None:
    """Divide participants and say how the sets compare."""
    from medsegmamba_bids.training.pairs.split import describe, read_participants, split_participants, write_split

    people = read_participants(options.participants, options.age_column, options.sex_column)
    divided = split_participants(people, options.seed)
    write_split(divided, options.out, options.seed)
    print(describe(divided))


def export(options: argparse.Namespace) -> None:
    """Write the weights file of a checkpoint."""
    from medsegmamba_bids.training.export import export_checkpoint
    from medsegmamba_bids.training.training_config import SynthesisConfig, find_config, read_config

    config = read_config(find_config(options.config))
    if isinstance(config, SynthesisConfig):
        config = config.varied(options.initial, options.leave_out)
    elif options.initial or options.leave_out:
        raise ConfigError("--initial and --leave-out are for trainings on synthesised images")
    _announce(options.out, export_checkpoint(options.checkpoint, config, options.out))


def _announce(path: Path, info: object) -> None:
    print(f"{path}: {info.name}, {len(info.labels)} classes")


@user_errors
def main(argv: list[str] | None = None) -> int:
    """Run a command; 0 when it succeeded, 1 for an input that was refused."""
    options = build_parser().parse_args(argv)
    set_up_logging(1, "%(message)s")
    options.run(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
