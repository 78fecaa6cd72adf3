"""The records of what is segmented agree with the tables, the names of products and each other."""

import dataclasses
from itertools import pairwise

import pandas as pd
import pytest

from medsegmamba_bids import segmentations
from medsegmamba_bids.data.names import _table, output_name
from medsegmamba_bids.errors import TableError
from medsegmamba_bids.image import labels
from medsegmamba_bids.image.labels import LabelTable, load_label_table
from medsegmamba_bids.segmentations import ASEG, HIPPOCAMPUS, SEGMENTATIONS, of_name, of_table, of_task


def test_every_label_table_belongs_to_one_segmentation():
    assert sorted(segmentations.TABLES) == sorted(labels.TABLES)
    assert len(set(segmentations.TABLES)) == len(segmentations.TABLES)


@pytest.mark.parametrize("kind", SEGMENTATIONS, ids=lambda kind: kind.name)
def test_each_table_holds_the_narrower_ones(kind):
    sets = [set(load_label_table(table).labels.tolist()) for table in kind.tables]
    assert all(narrow < wide for narrow, wide in pairwise(sets))


@pytest.mark.parametrize("kind", SEGMENTATIONS, ids=lambda kind: kind.name)
def test_products_bear_its_name(kind):
    products = [kind.native, kind.conformed, kind.entropy, kind.posteriors, kind.stats]
    assert set(products) <= set(_table()["products"])
    assert all(f"_seg-{kind.name}_" in output_name("sub-01", name) for name in products)


def test_records_are_found_by_name_task_and_table():
    assert [of_name("aseg"), of_task("aseg"), of_table("aseg_brain")] == [ASEG] * 3
    assert [of_name("hippoFS60"), of_task("hippocampus"), of_table("hippoFS60")] == [HIPPOCAMPUS] * 3
    with pytest.raises(TableError, match="'aparc' is unknown; there are aseg, hippoFS60"):
        of_name("aparc")


def test_the_table_that_is_listed_follows_the_network(monkeypatch):
    """A network that knows more than the usual table has its own structures listed."""
    brain = load_label_table("aseg_brain")
    more = brain.table.iloc[[-1]].assign(label=72, name="5th-Ventricle")
    head = pd.concat([brain.table, more], ignore_index=True)
    tables = {name: load_label_table(name) for name in ASEG.tables} | {"head": LabelTable("head", head)}
    monkeypatch.setattr(labels, "load_label_table", tables.__getitem__)
    kind = dataclasses.replace(ASEG, titles={**ASEG.titles, "head": "Head"})
    assert kind.listed_table(tables["aseg"].labels.tolist()) == "aseg_brain"
    assert kind.listed_table(brain.labels.tolist()) == "aseg_brain"
    assert kind.listed_table([*brain.labels.tolist(), 257]) == "aseg_brain"  # fluid outside is no structure
    assert kind.listed_table([*brain.labels.tolist(), 72]) == "head"
    assert kind.listed_table([0, 9999]) == "aseg_brain"
