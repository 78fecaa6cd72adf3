import time

import numpy as np
import pandas as pd

from medsegmamba_bids.execution.resource_monitor import ResourceMonitor, resource_monitor


def test_rows_hold_memory_and_processors_in_use(tmp_path):
    monitor = ResourceMonitor(tmp_path / "resources.tsv", pause_s=0.1)
    monitor.start()
    time.sleep(0.35)
    block = np.ones(50_000_000)  # 0.4 GB
    end = time.process_time() + 0.5
    while time.process_time() < end:
        block[:1000] += 1
    monitor.stop()
    rows = pd.read_csv(tmp_path / "resources.tsv", sep="\t")
    assert list(rows) == ["seconds", "memory_gb", "processors", "processes"]
    assert rows["memory_gb"].max() - rows["memory_gb"].min() > 0.35
    assert abs(monitor.peak_gb - rows["memory_gb"].max()) < 0.001
    assert rows["processors"].max() > 0.2  # of a machine that others use
    assert (rows["processes"] >= 1).all()
    assert rows["seconds"].is_monotonic_increasing


def test_nothing_is_watched_without_a_folder():
    with resource_monitor(None):
        pass
