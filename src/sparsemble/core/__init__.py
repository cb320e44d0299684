"""What every room shares: tensor types, threat models, interfaces, component registry, config reading, artifacts."""
