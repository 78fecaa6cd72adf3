"""Quality flags that the reports find are told with the outcomes."""

from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.execution.outcomes import DONE, FAILED, FLAGGED, Outcome, with_quality_flags
from medsegmamba_bids.report.quality import QualityInputs, flags_path, flags_to_tsv, quality_flags


def test_quality_flags_join_the_outcomes(tmp_path):
    config = RunConfig(tmp_path / "in", tmp_path / "out")
    flags = quality_flags(QualityInputs("sub-01_run-1", zooms=(2.0, 1.0, 1.0)))
    path = flags_path(config.output_dir, "01")
    path.parent.mkdir(parents=True)
    path.write_text(flags_to_tsv(flags))
    before = [
        Outcome("sub-01_run-1_T1w", DONE),
        Outcome("sub-01_run-2_T1w", DONE),
        Outcome("sub-02_T1w", FAILED, ("x",)),
    ]
    after = with_quality_flags(before, config)
    assert after[0] == Outcome("sub-01_run-1_T1w", FLAGGED, ("voxels are 2 mm (at most 1.5 mm)",))
    assert after[1:] == before[1:]
