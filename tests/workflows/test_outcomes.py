"""Quality flags that the reports find are told with the outcomes."""

from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.execution.outcomes import DONE, FAILED, FLAGGED, Outcome, outcome_table, with_quality_flags
from medsegmamba_bids.report.quality import QualityInputs, flags_path, flags_to_tsv, quality_flags


def test_quality_flags_join_the_outcomes(tmp_path):
    config = RunConfig(tmp_path / "in", tmp_path / "out")
    flags = quality_flags(QualityInputs("sub-01_run-1", zooms=(2.0, 1.0, 1.0)))
    path = flags_path(config.output_dir, "01")
    path.parent.mkdir(parents=True)
    path.write_text(flags_to_tsv(flags))
    before = [
        Outcome("sub-01_run-1_T1w", DONE),
        Outcome("sub-01_run-2_T1w", DONE, ("a note that is no fault",)),
        Outcome("sub-02_T1w", FAILED, ("x",)),
    ]
    after = with_quality_flags(before, config)
    assert after[0] == Outcome("sub-01_run-1_T1w", FLAGGED, ("voxels are 2 mm (at most 1.5 mm)",))
    assert after[1:] == before[1:]


def test_three_lines_of_an_image_on_the_terminal_and_all_in_the_log():
    outcomes = [Outcome("sub-01_T1w", FLAGGED, tuple(f"flag {number}" for number in range(9)))]
    lines = outcome_table(outcomes, 3).splitlines()
    assert [line.split("flagged")[-1].strip() for line in lines[:3]] == [
        "flag 0", "flag 1", "and 7 more lines in the report and the log"
    ]  # fmt: skip
    assert len(outcome_table(outcomes).splitlines()) == 9 + 1
    failed = [Outcome("sub-01_T1w", FAILED, tuple("abcde"))]
    assert len(outcome_table(failed, 3).splitlines()) == 5 + 1
