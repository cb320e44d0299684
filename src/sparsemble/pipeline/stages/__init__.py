"""The stages of the method, one frozen dataclass in one file each; each reads artifacts and writes one."""
