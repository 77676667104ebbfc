"""Training and evaluation: the parts that the commands assemble into a run."""
