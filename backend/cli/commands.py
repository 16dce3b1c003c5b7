"""The commands: the one table that the help of the program and the choice of a command come from.

It is read at every start, and therefore imports nothing.
"""

COMMANDS = {
    "demo": (
        "trials",
        "Go the whole way on phantoms, or on given CT, and write a report with pictures.",
    ),
    "scan": (
        "scans",
        "Find every usable CT series below any number of paths and say why others are not.",
    ),
    "pretrain": ("training", "Pretrain an encoder on unlabelled CT."),
    "finetune": ("training", "Train a segmentation network on labelled scans."),
    "segment": ("results", "Segment a scan, a DICOM series or a folder of scans."),
    "serve": (
        "results",
        "Keep networks ready and segment on request: JSON lines in, JSON lines out, for programs.",
    ),
    "evaluate": (
        "results",
        "Compare segmentations with references: overlap and surface distances per organ and case.",
    ),
    "benchmark": (
        "trials",
        "Compare pretrainings with random weights on equal terms; start again to go on.",
    ),
    "methods": (
        "methods",
        "List the pretext methods: what each does, for clinicians and for engineers.",
    ),
    "describe": (
        "methods",
        "Tell what a method with its settings is: parameters, cost, deviations from the paper.",
    ),
    "convert": (
        "methods",
        "Turn outside weights into an encoder file of ours, with a report of what matched.",
    ),
    "stop": (
        "runs",
        "Ask a run to finish its step, save and stop; then end its whole process tree.",
    ),
    "report": ("runs", "Write the report of a run again, e.g. after a crash or while it goes on."),
    "cache": ("scans", "Show or empty the cache of preprocessed scans."),
    "bench": (
        "trials",
        "Time what must be fast side by side with the peer named for it, and print one table.",
    ),
    "doctor": (
        "trials",
        "Tell whether this machine is ready: Python, packages, devices, memory, disk.",
    ),
}
"""Each command's name, in the order of the help; then the file beside this one that has the class
of its options, which is called like the command, and what it does."""
