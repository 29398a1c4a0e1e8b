"""Programs that run on a device: builds ours, and downloads Google's."""
