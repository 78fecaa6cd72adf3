"""What runs workflows: Nipype's plugin with its processes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nipype.pipeline.engine import Workflow

from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.errors import ConfigError
from medsegmamba_bids.records import read_mapping, unknown_keys
from medsegmamba_bids.report.crashes import last_error

logger = logging.getLogger(__name__)

LOG_FILE = "medsegmamba.log"

#: Called with a node and "start", "end" or "exception".
StatusCallback = Callable[[Any, str], None]


class Runner:
    """Runs workflows one after the other with the same processes."""

    def __init__(self, config: RunConfig, status: StatusCallback | None = None) -> None:
        self.plugin, self.arguments = _plugin(config, status)

    def run(self, workflow: Workflow) -> str:
        """Run a workflow; return why it ended early, or nothing. Nodes that failed are in crash files."""
        try:
            workflow.run(plugin=self.plugin, plugin_args=self.arguments)
        except Exception as error:  # Nipype raises what it likes once nodes have failed
            logger.debug("the workflow ended with an error", exc_info=True)
            first = error.__cause__ or error  # Nipype says how many there were, and raises that from the first
            return last_error(f"{type(first).__name__}: {first}")
        return ""

    def close(self) -> None:
        """End its processes."""
        if not isinstance(self.plugin, str):
            self.plugin.close()


@contextmanager
def open_runner(config: RunConfig, status: StatusCallback | None = None) -> Iterator[Runner]:
    """Yield a runner whose processes end with the block."""
    runner = Runner(config, status)
    try:
        yield runner
    finally:
        runner.close()


def _plugin(config: RunConfig, status: StatusCallback | None) -> tuple[Any, dict[str, Any]]:
    """Return the plugin, by name if it is one of Nipype's own, and its arguments."""
    if config.use_plugin:
        name, arguments = read_plugin(config.use_plugin)
        return name, {**arguments, "status_callback": status}
    from medsegmamba_bids.execution.plugin import NetworkProcessPlugin

    arguments = {
        "n_procs": config.nprocs,
        "memory_gb": config.mem_gb,
        "raise_insufficient": False,
        "device": config.device,
        "threads": config.omp_nthreads,
        "log_file": str(config.log_dir / LOG_FILE),
        "status_callback": status,
    }
    return NetworkProcessPlugin(arguments), arguments


def read_plugin(path: Path) -> tuple[str, dict[str, Any]]:
    """Read the name of a plugin of Nipype and its arguments from a JSON or YAML file.

    Raises
    ------
    ConfigError
        The file cannot be read, or names no plugin that there is.
    """
    from nipype.pipeline import plugins

    entries = read_mapping(path, "--use-plugin", "json" if path.suffix == ".json" else "yaml")
    if sentence := unknown_keys(entries, ("plugin", "plugin_args")):
        raise ConfigError(f"{path}: cannot be used as --use-plugin: {sentence}")
    name, arguments = entries.get("plugin"), entries.get("plugin_args") or {}
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ConfigError(
            f"{path}: cannot be used as --use-plugin: it must hold 'plugin', a name, and may hold 'plugin_args'"
        )
    known = sorted(key.removesuffix("Plugin") for key in vars(plugins) if key.endswith("Plugin"))
    if name not in known:
        raise ConfigError(f"{path}: Nipype has no plugin {name!r}; there are {', '.join(known)}")
    return name, dict(arguments)
