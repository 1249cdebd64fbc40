"""One tree of frozen, validated settings. In order: flags, environment, TOML file, the predecessor's variables, defaults."""
