"""Who runs the stages: `local` (worker processes of this machine)."""
