"""The windows of the module SSLSegmentation: one file per panel, Qt and MRML, no maths."""

import importlib.util
import sys
from pathlib import Path

LOGIC = "SSLPretrainLogic"
PRIVATE_FOLDER = "SSLSegmentationBackend"


def _load_logic() -> None:
    """Make SSLPretrainLogic importable without putting `backend` on Slicer's import path.

    It lies beside this module in a source checkout, and in a private folder where it is installed.
    """
    if LOGIC in sys.modules:
        return
    module_folder = Path(__file__).resolve().parents[1]
    folders = [module_folder / PRIVATE_FOLDER / LOGIC, module_folder.parent / LOGIC]
    for folder in folders:
        if (folder / "__init__.py").is_file():
            spec = importlib.util.spec_from_file_location(
                LOGIC, folder / "__init__.py", submodule_search_locations=[str(folder)]
            )
            package = importlib.util.module_from_spec(spec)
            sys.modules[LOGIC] = package
            spec.loader.exec_module(package)
            return
    raise ImportError(f"{LOGIC} is neither at {' nor at '.join(map(str, folders))}. Install again.")


_load_logic()
