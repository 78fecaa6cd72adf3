"""Commands in surroundings that are not as usual: users without a name, closed streams, long paths, odd locales."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import medsegmamba_bids
from medsegmamba_bids import __version__

ROOT = Path(medsegmamba_bids.__file__).parents[1]
VERSION = [sys.executable, "-m", "medsegmamba_bids.cli.main", "--version"]
LIST = [sys.executable, "-m", "medsegmamba_bids.cli.weights", "list"]


def environment(**changes):
    kept = {name: value for name, value in os.environ.items() if name not in ("HOME", "LOGNAME", "USER", "USERNAME")}
    return {**kept, "PYTHONPATH": str(ROOT), **changes}


def shell(text, **changes):
    command = ["bash", "-c", text]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment(**changes), cwd="/")


def quoted(command):
    return " ".join(map(str, command))


NOBODY = """
import os, pwd, sys
os.environ.pop("HOME", None)
def nobody(*arguments):
    raise KeyError("uid not found")
pwd.getpwuid = nobody
"""


def test_a_user_without_a_name_and_a_home(tmp_path):
    code = NOBODY + (
        "from pathlib import Path\nimport getpass\nfrom medsegmamba_bids.cli.surroundings import prepare\n"
        "prepare()\nprint(getpass.getuser(), Path.home().is_dir(), Path.home())\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment(TMPDIR=str(tmp_path))
    )
    name, there, home = ran.stdout.split()
    assert (name, there) == (f"user{os.getuid()}", "True")
    assert Path(home).parent == tmp_path
    assert list(tmp_path.iterdir()) == []  # gone with the command


def test_the_version_without_a_name_and_a_home():
    code = NOBODY + "from medsegmamba_bids.cli.main import main\nmain(['--version'])\n"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment())
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, f"medsegmamba {__version__}\n", "")


def test_a_long_temporary_folder_is_reached_by_a_short_path(tmp_path):
    folder = tmp_path / ("a" * 90)
    folder.mkdir()
    code = (
        "from medsegmamba_bids.cli.surroundings import prepare\nprepare()\n"
        "import multiprocessing, os, tempfile\nfrom pathlib import Path\n"
        "from multiprocessing.connection import Listener\n"
        "Path(tempfile.gettempdir(), 'here').touch()\n"
        "with Listener(family='AF_UNIX') as listener:\n    print(listener.address)\n"
        "print(os.environ['TMPDIR'])\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment(TMPDIR=str(folder))
    )
    address, short = ran.stdout.splitlines()
    assert len(short) < 40
    assert address.startswith(short)
    assert (folder / "here").exists()  # what is temporary goes where the user wants it
    assert not Path(short).is_symlink()
    assert not Path(short).parent.exists()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(closed, tmp_path):
    ran = shell(f"{quoted(LIST)} {closed}", MEDSEGMAMBA_WEIGHTS=str(tmp_path))
    assert ran.returncode == 0
    assert ran.stderr == ""
    assert ("hippocampus" in ran.stdout) == (">&-" not in closed.replace("2>&-", ""))


def test_files_do_not_take_the_numbers_of_closed_streams():
    code = (
        "import os; from medsegmamba_bids.cli.surroundings import open_streams; open_streams(); "
        "number = os.open('/dev/null', os.O_RDONLY); open('/dev/fd/9', 'w').write(str(number))"
    )
    assert int(shell(f'{sys.executable} -c "{code}" 9>&1 <&- >&- 2>&-').stdout) > 2


def test_processes_are_started_with_closed_streams():
    code = (
        "import multiprocessing; from medsegmamba_bids.cli.surroundings import open_streams; open_streams(); "
        "pool = multiprocessing.get_context('forkserver').Pool(1); "
        "open('/dev/fd/9', 'w').write(str(pool.apply(abs, [-3]))); pool.close(); pool.join()"
    )
    assert shell(f'{sys.executable} -c "{code}" 9>&1 <&- >&- 2>&-').stdout == "3"


def test_pictures_need_no_backend_that_the_user_names():
    code = (
        "from medsegmamba_bids.cli.surroundings import prepare; prepare(); "
        "import matplotlib.pyplot; print(matplotlib.get_backend())"
    )
    assert shell(f'{sys.executable} -c "{code}"', MPLBACKEND="nonsense").stdout == "agg\n"


def test_a_log_that_cannot_be_written_says_nothing():
    code = (
        "import logging; from medsegmamba_bids.cli.common import set_up_logging; set_up_logging(1); "
        "logging.getLogger('medsegmamba_bids').warning('told'); print('done')"
    )
    ran = shell(f'{sys.executable} -c "{code}" 2>/dev/full')
    assert (ran.returncode, ran.stdout) == (0, "done\n")


def test_a_reader_who_is_gone():
    ran = shell(f"{{ {quoted(LIST)}; echo $? >&2; }} | true")
    assert ran.stderr.splitlines()[-1] in (str(128 + signal.SIGPIPE), "0")  # 0 where it wrote first
    assert "Traceback" not in ran.stderr
    assert "error" not in ran.stderr
    code = (
        "import time\nfrom medsegmamba_bids.cli.common import user_errors\n"
        "@user_errors\ndef main(argv):\n    time.sleep(1)\n    print('late')\n    return 0\nraise SystemExit(main())\n"
    )
    ran = shell(f"{{ {sys.executable} -c '{code.replace(chr(39), chr(34))}'; echo $? >&2; }} | true")
    assert ran.stderr == f"{128 + signal.SIGPIPE}\n"


@pytest.mark.parametrize(
    "locale", [{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONIOENCODING": "ascii"}]
)
def test_output_never_fails(locale):
    code = (
        "from medsegmamba_bids.cli.common import user_errors\n"
        '@user_errors\ndef main(argv):\n    print("Zo\\u00eb \\u2026")\n    return 0\nraise SystemExit(main())\n'
    )
    ran = shell(f"{sys.executable} -c '{code}'", **locale)
    assert (ran.returncode, ran.stdout) == (0, "Zo\\xeb \\u2026\n")


def test_a_folder_that_is_gone_is_named(tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    command = quoted([sys.executable, "-m", "medsegmamba_bids.cli.main", "in", "out", "participant"])
    ran = shell(f"cd {folder}; rmdir {folder}; {command}")
    assert ran.returncode == 1
    assert ran.stderr == f"error: {folder}: the folder that the command was started in is gone; change to another\n"
