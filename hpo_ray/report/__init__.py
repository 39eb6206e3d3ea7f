"""Reports: tables and figures of what studies left behind. They read files, never a run."""
