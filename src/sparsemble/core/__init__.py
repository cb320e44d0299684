"""The words everybody uses: tensor types, threat model, interfaces, registry, recipe, artifacts."""
