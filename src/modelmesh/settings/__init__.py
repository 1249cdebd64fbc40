"""One tree of frozen, validated settings. Sources in order: flags, environment, TOML file, defaults."""
