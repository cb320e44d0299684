"""How the learning rate moves over training, one file each."""
