"""The benchmark that lists the networks of the comparison: its counts by formula, its table, one run."""

import json

import networks_compared as compared

SMALL = {"channels": [8, 8, 8, 8], "patch_size": 16}
VOXELS = 8  # of the bottleneck


def of_a_block(name, key, **config):
    """What one block more costs."""
    one, two = (compared.count_macs(name, {**SMALL, **config, key: number}) for number in (1, 2))
    return {kind: two[kind] - one[kind] for kind in one}


def test_a_block_of_medsegmamba():
    c, n, r = 32, 4, 2
    found = of_a_block("medsegmamba", "blocks", bottleneck=c, state=n)
    projections = 2 * c * c + 8 * c * (r + 2 * n) + 8 * r * c + 2 * c * c
    assert found == {
        "layers": VOXELS * (projections + 27 * c),
        "scans": VOXELS * 8 * 3 * c * n,
        "causal_convolutions": 0,
    }


def test_a_block_of_segmambabot():
    c, d, n, r = 32, 64, 4, 2
    found = of_a_block("segmambabot", "blocks", bottleneck=c, state=n)
    projections = c * 2 * d + 3 * (d * (r + 2 * n) + r * d) + d * c + 2 * c * c
    assert found == {
        "layers": VOXELS * projections,
        "scans": VOXELS * 3 * 3 * d * n,
        "causal_convolutions": VOXELS * 3 * 4 * d,
    }


def test_a_layer_of_tabsurfer():
    c, hidden = 32, 24
    found = of_a_block("tabsurfer", "layers", embedding=c, heads=2, hidden=hidden)
    attention = 2 * VOXELS * c
    assert found["layers"] == VOXELS * (4 * c * c + attention + 2 * c * hidden)
    assert found["scans"] == found["causal_convolutions"] == 0


def test_the_published_networks():
    giga = {name: round(sum(compared.count_macs(name).values()) / 1e9) for name in compared.networks()}
    assert giga == {"medsegmamba": 551, "segmambabot": 579, "tabsurfer": 371}


def test_it_runs(capsys):
    config = {**SMALL, "bottleneck": 16, "state": 2, "blocks": 1}
    assert compared.main(["--networks", "segmambabot", "--runs", "1", "--config", json.dumps(config)]) == 0
    line, *table = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    assert result["macs"] == sum(compared.count_macs("segmambabot", config).values())
    assert result["seconds_per_patch"] > 0
    assert 0 < result["peak_GiB"] < 10
    assert table[2].startswith(f"| segmambabot | {result['parameters']:,} | {result['macs'] / 1e9:.1f} | 0.0 |")
