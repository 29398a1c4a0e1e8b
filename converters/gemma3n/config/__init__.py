"""config.json and processor configs, read strictly into records."""
