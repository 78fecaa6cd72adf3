"""Commands: parse, call, report. Nothing here imports torch or nipype at its top."""
