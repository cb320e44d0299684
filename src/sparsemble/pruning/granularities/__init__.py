"""What is kept or removed together, one file each."""
