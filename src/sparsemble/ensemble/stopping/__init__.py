"""When to stop running members, one file each."""
