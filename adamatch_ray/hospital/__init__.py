"""Answers as a hospital's archive takes them: DICOM made from reports and regions, and the archive itself."""

import logging
import warnings
from importlib.util import find_spec

if find_spec("highdicom") is None or find_spec("dicomweb_client") is None:
    raise ValueError("DICOM documents and archives need more packages: pip install 'adamatch-ray[hospital]'")

# What these find odd they quote, patients' names included, and what they ask for they name.
for name in ("pydicom", "highdicom", "dicomweb_client"):
    logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=rf"{name}(\.|$)")
