"""Programs that run on a device: built here, downloaded, and brought there."""
