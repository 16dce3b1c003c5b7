"""What the GUI does, without Qt and without torch: jobs, run folders, projects, environments.

Runs in the Python of Slicer 5.10 to 5.13, which is 3.12, and in 3.11 and 3.13. The standard library
is all it takes: Slicer ships no psutil, and nothing may be installed to find out what is there.
"""
