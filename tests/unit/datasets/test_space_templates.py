"""Templates in a home folder that the test fills; the network is never asked."""

import json
import socket
import subprocess
import sys

import pytest

from medsegmamba_bids.datasets.space_templates import find_templates
from medsegmamba_bids.errors import ConfigError
from medsegmamba_bids.image.io import save_image


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def home(tmp_path, monkeypatch):
    import numpy as np

    folder = tmp_path / "templateflow" / "tpl-MNI152NLin2009cAsym"
    data = np.pad(np.full((4, 4, 4), 90, np.uint8), 2)
    for resolution in ("01", "02"):
        for ending in ("T1w", "desc-brain_mask", "desc-brain_T1w"):
            save_image(data, np.eye(4), folder / f"{folder.name}_res-{resolution}_{ending}.nii.gz")
    (folder / "template_description.json").write_text(json.dumps({"Name": "t", "TemplateFlowVersion": "1.2.3"}))
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(folder.parent))
    return folder


def test_a_template_that_is_there(home):
    first, second = find_templates(["MNI152NLin2009cAsym", "MNI152NLin2009cAsym:res-2"])
    assert first.path == home / "tpl-MNI152NLin2009cAsym_res-01_T1w.nii.gz"
    assert second.mask == home / "tpl-MNI152NLin2009cAsym_res-02_desc-brain_mask.nii.gz"
    assert first.facts()["Version"] == "1.2.3"
    data, grid = first.brain()
    assert (data.sum(), grid.shape) == (64 * 90, (8, 8, 8))


@pytest.mark.parametrize("how", ["absent", "stub", "another"])
def test_one_that_is_not_gets_the_command(home, how):
    space = "OASIS30ANTs" if how == "another" else "MNI152NLin2009cAsym"
    path = home / "tpl-MNI152NLin2009cAsym_res-01_T1w.nii.gz"
    if how == "absent":
        path.unlink()
    elif how == "stub":
        path.write_bytes(b"")
    what = "T1w and brain mask" if how == "another" else "T1w"
    with pytest.raises(ConfigError, match=f"{what} of this template are not in .*--fetch-templates.*get\\('{space}'"):
        find_templates([space])


def test_nothing_is_made_where_there_is_no_home(tmp_path):
    code = (
        "from medsegmamba_bids.datasets.space_templates import find_templates\n"
        "from medsegmamba_bids.errors import ConfigError\nimport sys\n"
        "try: find_templates(['MNI152Lin'])\nexcept ConfigError: print('templateflow' in sys.modules)"
    )
    home = tmp_path / "none"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"TEMPLATEFLOW_HOME": str(home)}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
    assert not home.exists()
