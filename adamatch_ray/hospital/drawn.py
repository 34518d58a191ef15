"""A drawn X-ray as a DICOM of its own: a secondary capture that says in every place it can that it is synthetic."""

import hashlib

import numpy as np
from highdicom.sc import SCImage
from numpy.typing import NDArray

from adamatch_ray.hospital.source import NOTICE, PRODUCT, derived_uid, software_version


def secondary_capture(pixels: NDArray[np.uint8], version: str) -> SCImage:
    """The X-ray gray uint8 [H, W] that models of a version drew; the same picture is the same instance.

    It belongs to no patient, and the report that it was drawn from is not in it.
    """
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    image = SCImage(
        pixel_array=pixels,
        photometric_interpretation="MONOCHROME2",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "F"),
        study_instance_uid=derived_uid(digest, "study", version),
        series_instance_uid=derived_uid(digest, "series", version),
        series_number=1,
        sop_instance_uid=derived_uid(digest, "SC", version),
        instance_number=1,
        manufacturer=PRODUCT,
        manufacturer_model_name=PRODUCT,
        software_versions=software_version(version),
        patient_id="SYNTHETIC",
        patient_name="SYNTHETIC^DRAWN",
        series_description=f"Synthetic. {NOTICE}",
    )
    image.StudyDescription = image.SeriesDescription
    image.ConversionType, image.BodyPartExamined = "SYN", "CHEST"
    image.SyntheticData, image.BurnedInAnnotation = "YES", "NO"
    image.DerivationDescription = f"Drawn from a report by {PRODUCT} {software_version(version)}; no X-ray was taken."
    image.ImageComments = f"Synthetic, of no patient. {NOTICE}"
    return image
