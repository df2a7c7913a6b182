"""A folder of runs in the browser, read-only, on this machine alone."""
