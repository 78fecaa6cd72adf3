"""How workflows are run: processes, batches of participants, work folders, what need not be done again, Slurm."""
