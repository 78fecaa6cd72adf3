"""The plugin: networks stay in one process, and a process that dies is a node that failed."""

import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from nipype.interfaces.base import BaseInterfaceInputSpec, SimpleInterface, TraitedSpec, traits
from nipype.pipeline.engine import Node, Workflow
from nipype.pipeline.engine.utils import generate_expanded_graph
from nipype.pipeline.plugins import multiproc
from nipype.utils.filemanip import loadpkl

import medsegmamba_bids
from medsegmamba_bids.execution.plugin import NetworkProcessPlugin, Worker, interrupts_later, visible_devices
from medsegmamba_bids.inference import beside
from medsegmamba_bids.report.crashes import read_crashes


class InputSpec(BaseInterfaceInputSpec):
    die = traits.Bool(False, usedefault=True)
    mark = traits.Str()
    meeting_place = traits.Directory()
    num_threads = traits.Int(1, usedefault=True, nohash=True)
    seconds = traits.Float(0.2, usedefault=True)


class OutputSpec(TraitedSpec):
    pid = traits.Int()
    mask = traits.Str()


class Tell(SimpleInterface):
    """Tells in which process it ran, or kills it."""

    input_spec, output_spec = InputSpec, OutputSpec
    runs_network = False

    def _run_interface(self, runtime):
        if self.inputs.die:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.inputs.meeting_place:
            meet(Path(self.inputs.meeting_place))
        time.sleep(self.inputs.seconds)
        self._results.update(pid=os.getpid(), mask=os.environ.get("CUDA_VISIBLE_DEVICES", ""))
        return runtime


def meet(place, processes=2, patience_s=120):
    """Wait until so many processes have begun as many nodes as this one, however late one of them starts."""
    begun = len(list(place.glob(f"{os.getpid()}-*")))
    (place / f"{os.getpid()}-{begun}").touch()
    deadline = time.monotonic() + patience_s
    while len(list(place.glob(f"*-{begun}"))) < processes:
        if time.monotonic() > deadline:
            raise TimeoutError(f"no node of another process ran within {patience_s} s")
        time.sleep(0.02)


class TellOfNetwork(Tell):
    runs_network = True


class TellWhatIsBeside(Tell):
    """Looks for a while at how many steps run beside it, and tells each number that it saw, in ``mask``."""

    runs_network = True

    def _run_interface(self, runtime):
        meet(Path(self.inputs.meeting_place))
        seen, end = [], time.monotonic() + 60
        while seen[-2:] != [1, 0] and time.monotonic() < end:
            now = beside._COUNTERS[0].value
            seen += [now] if seen[-1:] != [now] else []
            time.sleep(0.02)
        self._results.update(pid=os.getpid(), mask=str(seen))
        return runtime


class DiesBesideAnother(Tell):
    def _run_interface(self, runtime):
        wait_for(Path(self.inputs.meeting_place) / "begun")
        os.kill(os.getpid(), signal.SIGKILL)


class FailsBesideAnother(Tell):
    def _run_interface(self, runtime):
        wait_for(Path(self.inputs.meeting_place) / "begun")
        raise ValueError("it fails")


class BeginsAndWaits(Tell):
    def _run_interface(self, runtime):
        place = Path(self.inputs.meeting_place)
        (place / "begun.tmp").write_text(str(os.getpid()))
        (place / "begun.tmp").replace(place / "begun")
        time.sleep(self.inputs.seconds)
        (place / "ended").touch()
        return runtime


class EndsSlowly(Tell):
    """Is long in a first run that is ended, and tells in a second one whether the first one's process is there."""

    def _run_interface(self, runtime):
        begun = Path(self.inputs.meeting_place) / "begun"
        if begun.exists():
            self._results["mask"] = "there" if is_alive(int(begun.read_text())) else "gone"
            return runtime
        if self.inputs.mark == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        begun.with_suffix(".tmp").write_text(str(os.getpid()))
        begun.with_suffix(".tmp").replace(begun)
        try:
            time.sleep(120)
        finally:
            time.sleep(1)  # tidies up


def wait_for(path, patience_s=120):
    deadline = time.monotonic() + patience_s
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def plugin(tmp_path):
    log = tmp_path / "log.txt"
    runner = NetworkProcessPlugin({"n_procs": 2, "memory_gb": 4, "device": "cpu", "log_file": str(log)})
    yield runner
    runner.close(kill=True)


def workflow_of(tmp_path, **interfaces):
    workflow = Workflow(name="wf", base_dir=str(tmp_path))
    workflow.add_nodes([Node(interface, name=name) for name, interface in interfaces.items()])
    workflow.config["execution"] = {
        "crashdump_dir": str(tmp_path / "crashes"),
        "crashfile_format": "txt",
        "stop_on_first_crash": False,
        "poll_sleep_duration": 0.05,
        "create_report": False,
    }
    return workflow


def results(graph):
    return {node.name: node.result.outputs for node in graph.nodes()}


def test_networks_share_a_process_over_workflows(tmp_path, plugin):
    one = results(workflow_of(tmp_path / "a", n1=TellOfNetwork(), n2=TellOfNetwork(), other=Tell()).run(plugin))
    two = results(workflow_of(tmp_path / "b", n3=TellOfNetwork()).run(plugin))
    assert one["n1"].pid == one["n2"].pid == two["n3"].pid
    assert one["other"].pid != one["n1"].pid
    assert os.getpid() not in {one["n1"].pid, one["other"].pid}


def test_a_network_knows_how_many_steps_run_beside_it(tmp_path, plugin):
    (tmp_path / "meeting").mkdir()
    there = str(tmp_path / "meeting")
    nodes = {"network": TellWhatIsBeside(meeting_place=there), "other": Tell(meeting_place=there, seconds=0.5)}
    workflow = workflow_of(tmp_path / "a", **nodes)
    workflow.get_node("network").n_procs = 2  # all that there are
    assert results(workflow.run(plugin))["network"].mask == "[1, 0]"
    with pytest.raises(RuntimeError):
        workflow_of(tmp_path / "b", other=Tell(die=True)).run(plugin)
    assert plugin._beside.value == 0


def test_waiting_takes_no_processor(tmp_path, plugin, monkeypatch):
    """A second with a node: Nipype alone would collect garbage every 50 ms."""
    collected = []
    monkeypatch.setattr(multiproc, "gc", SimpleNamespace(collect=lambda: collected.append(1)))
    results(workflow_of(tmp_path, waits=Tell(seconds=1.0)).run(plugin))
    assert 1 <= len(collected) <= 3


def test_gpus_share_the_work(tmp_path, monkeypatch):
    """Two pretended ones, of three processors in all: a network that may take them all must not keep the other idle."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-6")
    runner = NetworkProcessPlugin({"n_procs": 3, "memory_gb": 4, "device": "auto"})
    place = tmp_path / "place"
    place.mkdir()
    try:
        networks = {f"n{number}": TellOfNetwork(meeting_place=str(place)) for number in range(6)}
        workflow = workflow_of(tmp_path, **networks, other=Tell())
        for node in workflow._get_all_nodes():
            node.n_procs = 3
        nodes = {node.name: node for node in workflow.run(runner).nodes()}
    finally:
        runner.close()
    found = [node.result.outputs for node in nodes.values() if node.name != "other"]
    masks = {outputs.pid: outputs.mask for outputs in found}
    assert sorted(masks.values()) == ["4", "GPU-6"]  # a process for each, and each with its own
    assert min([outputs.mask for outputs in found].count(mask) for mask in masks.values()) >= 2
    assert {nodes["n0"].n_procs, nodes["other"].n_procs} == {1, 3}


def test_more_gpus_than_processors(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    runner = NetworkProcessPlugin({"n_procs": 1, "memory_gb": 4, "device": "cuda"})
    try:
        assert results(workflow_of(tmp_path, n0=TellOfNetwork()).run(runner))["n0"].mask == "0"
    finally:
        runner.close()
    assert "3 GPUs, but 1 processors (--nprocs)" in caplog.text


def test_a_killed_process_is_a_failed_node(tmp_path, plugin):
    workflow = workflow_of(tmp_path, dies=TellOfNetwork(die=True), lives=TellOfNetwork(), other=Tell())
    with pytest.raises(RuntimeError):
        workflow.run(plugin)
    crashes = read_crashes(tmp_path / "crashes")
    assert list(crashes) == ["wf.dies"]
    assert "its process was killed" in crashes["wf.dies"]
    assert not (tmp_path / "wf" / "dies" / "result_dies.pklz").exists()
    for name in ("lives", "other"):
        assert (tmp_path / "wf" / name / f"result_{name}.pklz").exists()


def test_a_workflow_that_ends_early_leaves_no_node_running(tmp_path, plugin):
    """Its locks are released then, and another run may be in the same folders."""
    inputs = {"meeting_place": str(tmp_path)}
    workflow = workflow_of(tmp_path, fails=FailsBesideAnother(**inputs), slow=BeginsAndWaits(seconds=3.0, **inputs))
    later = [Node(Tell(), name=f"later_{number}") for number in range(3)]
    workflow.connect([(workflow.get_node("slow"), node, [("mask", "mark")]) for node in later])
    workflow.config["execution"]["stop_on_first_crash"] = True
    with pytest.raises(RuntimeError, match="it fails"):
        workflow.run(plugin)
    assert (tmp_path / "ended").exists()
    assert not (tmp_path / "wf" / "later_0").exists()
    assert (plugin._task_obj, plugin._tasks, plugin._alone, plugin._to_repeat) == ({}, {}, {}, set())
    assert results(workflow_of(tmp_path / "next", other=Tell()).run(plugin))["other"].pid


def test_an_interrupt_is_heard_while_nodes_of_a_workflow_that_ended_early_are_waited_for(tmp_path, plugin, monkeypatch):
    inputs = {"meeting_place": str(tmp_path)}
    workflow = workflow_of(tmp_path, fails=FailsBesideAnother(**inputs), slow=BeginsAndWaits(seconds=60.0, **inputs))
    workflow.config["execution"]["stop_on_first_crash"] = True

    def interrupt(futures):
        raise KeyboardInterrupt

    monkeypatch.setattr("medsegmamba_bids.execution.plugin.wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        workflow.run(plugin)
    assert not is_alive(int((tmp_path / "begun").read_text()))


@pytest.mark.parametrize("elsewhere", [True, False])
def test_a_crash_that_cannot_be_written_where_it_belongs_stops_no_other_node(tmp_path, plugin, caplog, elsewhere):
    """As where a participant's folder is another user's; a full disk has no place at all."""
    (tmp_path / "file").touch()
    workflow = workflow_of(tmp_path, dies=TellOfNetwork(die=True), lives=TellOfNetwork(seconds=0.5))
    if not elsewhere:
        workflow.config["execution"]["crashdump_dir"] = str(tmp_path / "file" / "crashes")
    dies = workflow.get_node("dies")
    dies.config = {"execution": {**workflow.config["execution"], "crashdump_dir": str(tmp_path / "file" / "own")}}
    with pytest.raises(RuntimeError, match="its process was killed"):
        workflow.run(plugin)
    assert list(read_crashes(tmp_path / "crashes")) == ["wf.dies"] * elsewhere
    assert f"{tmp_path / 'file' / 'own'}: no crash file can be written (Not a directory)" in caplog.text
    assert (tmp_path / "wf" / "lives" / "result_lives.pklz").exists()


def test_nodes_beside_a_killed_one_are_run_again(tmp_path, plugin):
    workflow = workflow_of(tmp_path, dies=Tell(die=True), beside=Tell())
    with pytest.raises(RuntimeError):
        workflow.run(plugin)
    assert list(read_crashes(tmp_path / "crashes")) == ["wf.dies"]
    assert (tmp_path / "wf" / "beside" / "result_beside.pklz").exists()


@pytest.mark.parametrize("mark", ["tidy", "deaf"])
def test_nothing_of_a_node_is_left_when_it_is_run_again(tmp_path, plugin, monkeypatch, mark):
    """A pool gives up its tasks before their processes have ended: both would be in the same folder."""
    monkeypatch.setattr("medsegmamba_bids.execution.plugin._PATIENCE_S", 3.0)
    inputs = {"meeting_place": str(tmp_path)}
    workflow = workflow_of(tmp_path, dies=DiesBesideAnother(**inputs), beside=EndsSlowly(mark=mark, **inputs))
    with pytest.raises(RuntimeError):
        workflow.run(plugin)
    assert list(read_crashes(tmp_path / "crashes")) == ["wf.dies"]
    assert loadpkl(tmp_path / "wf" / "beside" / "result_beside.pklz").outputs.mask == "gone"


def test_an_idle_network_is_not_kept_waiting(plugin):
    plugin.procs = [Node(kind(), name=name) for kind, name in ((Tell, "x"), (Tell, "conform"), (TellOfNetwork, "n"))]
    assert plugin._sort_jobs([0, 1, 2]) == [2]
    plugin.procs.pop()
    assert plugin._sort_jobs([0, 1]) == [1, 0]


def test_what_most_others_wait_for_is_started_first(plugin):
    names = ["native_aseg", "intracranial", "native_mask", "normalize", "native_hippocampus", "draw", "conform"]
    plugin.procs = [Node(Tell(), name=name) for name in names]
    assert [names[job] for job in plugin._sort_jobs(range(7))] == [
        *("conform", "normalize", "intracranial", "native_aseg", "native_mask", "draw", "native_hippocampus")
    ]


def participants_workflow(tmp_path, *subjects):
    """Of each a chain as the app's: conform, network, statistics, report."""
    workflow = Workflow(name="wf", base_dir=str(tmp_path))
    for subject in subjects:
        part = Workflow(name=subject)
        steps = [Node(TellOfNetwork() if name == "aseg" else Tell(), name=name) for name in CHAIN]
        for node, follower in pairwise(steps):
            part.connect(node, "mask", follower, "mark")
        workflow.add_nodes([part])
    return workflow


CHAIN = ("conform", "aseg", "statistics_aseg", "report")


@pytest.fixture
def three(tmp_path, plugin):
    """The plugin with three participants' nodes, as when it runs them; and their jobs by name."""
    graph = generate_expanded_graph(participants_workflow(tmp_path, "a", "b", "c")._create_flat_graph())
    plugin._prerun_check(graph)
    plugin._generate_dependency_list(graph)
    return plugin, {node.fullname.removeprefix("wf."): job for job, node in enumerate(plugin.procs)}


@pytest.mark.parametrize(
    ("ready", "order"),
    [
        # Nothing waits for the network: what it needs comes first, then a participant after the other.
        (["a.report", "b.statistics_aseg", "c.conform"], ["c.conform", "a.report", "b.statistics_aseg"]),
        (["b.statistics_aseg", "b.conform", "a.report"], ["b.conform", "a.report", "b.statistics_aseg"]),
        # An image waits for it already: that of the third can wait.
        (["b.aseg", "c.conform", "a.statistics_aseg"], ["a.statistics_aseg", "c.conform"]),
    ],
)
def test_a_participant_is_finished_while_the_network_is_at_the_next(three, ready, order, monkeypatch):
    plugin, jobs = three
    monkeypatch.setattr(Worker, "busy", property(lambda worker: True))
    names = {job: name for name, job in jobs.items()}
    assert [names[job] for job in plugin._sort_jobs([jobs[name] for name in ready])] == order


@pytest.mark.parametrize(("processors", "places"), [(1, 1), (2, 1), (4, 3), (8, 6)])
def test_a_network_leaves_room_for_others(tmp_path, processors, places):
    runner = NetworkProcessPlugin({"n_procs": processors, "memory_gb": 4, "device": "cpu"})
    graph = generate_expanded_graph(participants_workflow(tmp_path, "a")._create_flat_graph())
    nodes = {node.name: node for node in graph.nodes()}
    for node in nodes.values():
        node.n_procs = processors
    runner._prerun_check(graph)
    runner.close(kill=True)
    assert (nodes["aseg"].n_procs, nodes["report"].n_procs) == (places, processors)
    assert nodes["aseg"].inputs.num_threads == processors


@pytest.mark.parametrize(("threads", "told"), [(8, [1, 2, 1]), (7, [0, 1, 0]), (2, [0, 0, 0])])
def test_a_network_gives_up_no_thread_while_other_processors_are_free(tmp_path, threads, told):
    runner = NetworkProcessPlugin({"n_procs": 8, "memory_gb": 4, "device": "cpu"})
    graph = generate_expanded_graph(participants_workflow(tmp_path, "a")._create_flat_graph())
    for node in graph.nodes():
        node.n_procs = threads
    runner._prerun_check(graph)
    runner.close(kill=True)
    seen = []
    for change in (1, 1, -1):
        runner._count(change)
        seen.append(runner._beside.value)
    assert seen == told


def test_networks_share_what_they_give_up(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    runner = NetworkProcessPlugin({"n_procs": 8, "memory_gb": 4, "device": "cuda"})
    graph = generate_expanded_graph(participants_workflow(tmp_path, "a")._create_flat_graph())
    for node in graph.nodes():
        node.n_procs = 4
    runner._prerun_check(graph)
    runner.close(kill=True)
    seen = []
    for _ in range(4):
        runner._count(1)
        seen.append(runner._beside.value)
    assert seen == [1, 1, 2, 2]  # of each network's four threads


def test_the_mask_of_the_scheduler_is_respected(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert visible_devices("auto") == ["3", "5"]
    assert visible_devices("cuda:1") == visible_devices("cpu") == [None]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_devices("cuda") == [None]


def test_ctrl_c_while_the_forkserver_imports_leaves_no_traceback(tmp_path):
    (tmp_path / "slow_to_import.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(3)\n")
    code = (
        "import time\nfrom medsegmamba_bids.execution.workers import start_forkserver\n"
        "if __name__ == '__main__':\n"
        "    try:\n        start_forkserver(preloaded=['slow_to_import'])\n        time.sleep(30)\n"
        "    except KeyboardInterrupt:\n        print('interrupted')\n"
    )
    (tmp_path / "main.py").write_text(code)
    places = [str(tmp_path), str(Path(medsegmamba_bids.__file__).parents[1])]
    command = subprocess.Popen(
        [sys.executable, str(tmp_path / "main.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
    )
    assert command.stdout.readline() == "importing\n"
    os.killpg(command.pid, signal.SIGINT)
    assert command.communicate(timeout=60) == ("interrupted\n", "")


def test_an_interrupt_waits_until_a_process_is_started():
    done = []
    # A shell that starts pytest in the background has it ignore interrupts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            _interrupted_within(done)
        assert done == ["started"]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupted_within(done):
    with interrupts_later():
        signal.raise_signal(signal.SIGINT)
        done.append("started")
    done.append("too late")


def test_a_process_that_is_asked_to_end_is_silent_whatever_becomes_of_it():
    code = (
        "import signal\nfrom medsegmamba_bids.execution.workers import _end\nsignal.signal(signal.SIGTERM, _end)\n"
        "try:\n    signal.raise_signal(signal.SIGTERM)\n"
        "except SystemExit as error:\n    raise RuntimeError('while importing') from error\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (1, "")
