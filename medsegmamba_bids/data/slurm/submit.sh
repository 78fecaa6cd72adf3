#!/bin/bash
# Submits the array and, after all its tasks have ended in whatever way, the group level.
set -u
array=$$(sbatch --parsable $participants) || exit 1
array=$${array%%;*}
echo "array job $$array: $tasks tasks"
if ! group=$$(sbatch --parsable --dependency="afterany:$$array" $group); then
    scancel "$$array"
    exit 1
fi
echo "group job $${group%%;*}, after the array"
