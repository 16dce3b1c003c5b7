"""What the GUI does, without Qt and without torch: jobs, run folders, scenes."""
