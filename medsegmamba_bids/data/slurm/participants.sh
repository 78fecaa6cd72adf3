#!/bin/bash
#SBATCH --job-name=medsegmamba
#SBATCH --array=$array
#SBATCH --cpus-per-task=$processors
#SBATCH --mem=${memory}M
#SBATCH --time=$minutes
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --chdir=$here
#SBATCH --output=$log
$options
# One task per line of the file of tasks. What is finished is skipped, so a task may run again at any time.
tasks=$tasks
labels=$$(sed -n "$${SLURM_ARRAY_TASK_ID:?is set by Slurm: submit this with sbatch}p" "$$tasks")
if [ -z "$$labels" ]; then
    echo "error: $$tasks: no line $$SLURM_ARRAY_TASK_ID" >&2
    exit 1
fi
echo "participants $$labels on $$(hostname)"
$command --participant-label $$labels
