#!/bin/bash
#SBATCH --job-name=medsegmamba-group
#SBATCH --cpus-per-task=1
#SBATCH --mem=${memory}M
#SBATCH --time=$minutes
#SBATCH --open-mode=append
#SBATCH --chdir=$here
#SBATCH --output=$log
$options
$command
