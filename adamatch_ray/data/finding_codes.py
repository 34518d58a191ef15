"""Codes of the lexicon's findings, for documents that other programs read: SNOMED CT as DICOM's own context groups have
it, else RadLex. A finding that neither names exactly is coded by this project's own scheme, never by a similar one.
"""

from typing import NamedTuple

SNOMED_CT, RADLEX, OWN = "SCT", "RADLEX", "99ADAMATCH"
"""Designators of the coding schemes, as DICOM writes them (PS3.16, 8)."""


class FindingCode(NamedTuple):
    """A coded concept."""

    scheme: str
    value: str
    meaning: str


_SNOMED_CT = {
    "pleural effusion": "60046008",
    "pneumothorax": "36118008",
    "pneumomediastinum": "16838000",
    "pulmonary edema": "19242006",
    "pulmonary embolism": "59282003",
    "pulmonary disease": "19829001",
    "pulmonary hypertension": "70995007",
    "abscess": "44132006",
    "mass": "4147007",
    "nodule": "27925004",
    "lesion": "52988006",
    "cyst": "367643001",
    "neoplasm": "108369006",
    "metastasis": "128462008",
    "lymphadenopathy": "30746006",
    "cardiomegaly": "287272002",
    "cardiomyopathy": "85898001",
    "heart failure": "84114007",
    "pericardial effusion": "373945007",
    "aortic aneurysm": "67362008",
    "aortic dissection": "308546005",
    "vascular calcification": "129759000",
    "endotracheal tube": "26412008",
    "catheter": "19923001",
    "stent": "65818007",
    "prosthesis": "53350007",
    "foreign body": "19227008",
}
_RADLEX = {
    "atelectasis": "RID28493",
    "consolidation": "RID43255",
    "pneumonia": "RID5350",
    "emphysema": "RID4799",
    "opacity": "RID28530",
    "ground glass opacity": "RID28531",
    "fracture": "RID4650",
    "compression fracture": "RID4658",
    "calcification": "RID5196",
    "thickening": "RID28509",
    "sclerosis": "RID5227",
    "pleural plaque": "RID43269",
}
# Where the schemes name a finding otherwise than the lexicon.
_RENAMED = {
    "central line": FindingCode(SNOMED_CT, "52124006", "Central venous catheter"),
    "pacemaker": FindingCode(SNOMED_CT, "14106009", "Cardiac pacemaker"),
    "chest tube": FindingCode(RADLEX, "RID5573", "thoracostomy tube"),
    "tracheostomy": FindingCode(RADLEX, "RID5560", "tracheostomy tube"),
    "picc": FindingCode(RADLEX, "RID5581", "peripheral intravenous central catheter"),
    "port": FindingCode(RADLEX, "RID50336", "port"),
}

FINDING_CODES = {
    **{term: FindingCode(SNOMED_CT, value, term.capitalize()) for term, value in _SNOMED_CT.items()},
    **{term: FindingCode(RADLEX, value, term) for term, value in _RADLEX.items()},
    **_RENAMED,
}
"""The lexicon's term of a finding → its code."""


def finding_code(finding: str) -> FindingCode:
    """The code of a finding by the lexicon's term; of this project's own scheme where no other is known."""
    return FINDING_CODES.get(finding) or FindingCode(OWN, finding.replace(" ", "-"), finding)
