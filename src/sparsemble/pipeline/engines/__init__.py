"""Who runs the stages: one driver, and executors: worker processes of this machine, or what torchrun started."""
